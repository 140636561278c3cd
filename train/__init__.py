"""From a folder of photos to a trained VGG16 classifier and the record of how it was made."""

import os

# TensorFlow reads these while it is imported: without them its start-up notes bury our own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
