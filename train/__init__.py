"""Train a VGG16 image classifier on a folder of photos, and record how it was made."""

import os

# TensorFlow reads these on import. Without them its start messages hide the lines of this command.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
