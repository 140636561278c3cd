"""Packs the drawings of the default negatives into models/negatives/drawings.zip.

    apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clipart
    python -m benchmarks.pack_drawings clipart/usr/share/openclipart/png

The Debian package openclipart-png 1:0.18+dfsg holds 8,121 drawings, dedicated to the public domain. Drawings
of real objects are chosen by folder, without plants, symbols, logos, weapons and known characters. A hash of
the path decides which of them are packed. Each is stored with its transparency, as lossless WebP, so that
every machine decodes the same pixels; the same input gives the same archive.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

ARCHIVE = Path(__file__).parents[1] / "models/negatives/drawings.zip"
COUNT = 1200
SIDE = 192  # pixels of the longer side
COLORS = 64
MIN_SIDE = 60  # pixels; smaller drawings are icons
MAX_PIXELS = 12_000_000  # a few drawings have 169 million
FOLDERS = (
    "animals", "buildings", "computer/hardware", "computer/connectors", "containers", "education",
    "electronics", "food", "office", "people", "recreation/art", "recreation/games/chess",
    "recreation/games/dice", "recreation/music", "recreation/party", "recreation/sports", "recreation/toys",
    "science", "signs_and_symbols/clocks", "signs_and_symbols/money", "tools", "transportation",
)  # fmt: skip
EXCLUDED_FOLDERS = (
    "animals/fantasy", "food/beverages/alcohol", "people/smilies", "people/stickmen", "people/bodypart",
    "people/clothing/pantyhose", "tools/weapons", "transportation/roadsigns", "transportation/aiga-symbols",
    "transportation/vehicles/hummers", "recreation/religion",
)  # fmt: skip
# Parts of words in names, in English, Italian, French and Spanish.
PLANTS = (
    "flower", "floral", "flor", "fior", "fleur", "blum", "rose", "rosa", "tulip", "daisy", "dandelion",
    "girasol", "petal", "bouquet", "blossom", "bloom", "plant", "piant", "leaf", "leaves", "fogli", "tree",
    "alber", "lotus", "lily", "poppy", "garden", "giardin", "vase", "vaso", "wreath", "ghirland", "clover",
    "iris", "violet", "cactus", "holly", "bush", "grass", "gumnut", "pinwheel", "girandola", "lei_",
)  # fmt: skip
SUN_LIKE = (
    "sun", "sole_", "firework", "star", "stella", "splat", "cog", "ruota_dentata", "engrenagem", "gear",
)  # fmt: skip
CHARACTERS = (
    "tux", "linux", "gnu", "debian", "mozilla", "firefox", "gnome", "kde", "xbill", "chomper", "otto",
    "cisco", "hp_", "alcatel", "nikon", "sony", "bmw", "toyota", "dodge", "skoda", "hummer", "shelby",
    "blazer", "einstein", "luther", "bach", "beethov", "handel", "coltrane", "beckham", "knievel", "gogh",
    "munch", "road_runner", "bambi", "pokemon", "mickey", "lego", "coca", "pepsi", "kexi", "zinf", "saku",
    "maya_head",
)  # fmt: skip
OFFENSIVE = (
    "gun", "pistol", "weapon", "tank", "war_", "abrams", "gallows", "nunchaku", "skull", "punk", "bad_guy",
    "sexy", "stripper", "nude", "naked", "bikini", "lingerie", "bra_", "pregnan", "incinta", "smok", "cigar",
    "beer", "birra", "wine", "vino", "alcohol", "whisk", "martini", "cocktail", "bottle_opener", "drunk",
    "pace_", "bread_and_wine", "hygieia", "fingerprint", "alien", "tatoo", "devil", "angel", "kaboom",
    "virus",
)  # fmt: skip
NOT_OBJECTS = (
    "banner", "border", "pattern", "_symbol", "simbol", "icon", "clef", "note_", "notes", "quaver", "croche",
    "theory", "logo", "arrow", "sketch", "button", "menu_example", "diagram", "pinout", "silhouette",
    "no_entry", "no_cycles", "ahead", "crosses", "roundabout", "motorway", "_lane", "lorry_length", "zigzag",
    "pass_either", "trams_only", "crosswind", "bus_opposite", "two_way", "turn_", "end_daul", "bluepane",
)  # fmt: skip
# Found by eye: broken drawings, flags, road signs, sailing rules, texts, portraits, a bird among flowers.
UNSUITABLE = (
    "duck_yellow_ii", "stylized_yoga", "mirjam_meijer", "dead_frogs", "zanzara_cretina", "cymru_flag",
    "crazy_monkey", "shaezy", "skoynk", "capitol", "bible", "cross_", "braces", "elfish", "female_", "silvia",
    "self_portrait", "enthusiast", "evolution", "boating_rules", "sailing_", "military", "ink_ff77", "manga",
    "certificate", "panel_fudriot", "telephone_lutte", "telephone_sauvetage", "t-shirt", "eris_apple",
    "ampel", "cattle", "drawbridge", "grounded", "tunnel", "tram_", "old_folks", "grenade", "saxowoman",
    "buses_and", "cycles", "parking", "leisler", "moped_sign", "route_",
)  # fmt: skip
EXCLUDED_WORDS = (*PLANTS, *SUN_LIKE, *CHARACTERS, *OFFENSIVE, *NOT_OBJECTS, *UNSUITABLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder usr/share/openclipart/png of the package")
    drawings = choose(parser.parse_args().folder)
    ARCHIVE.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(drawings.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    digest = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    print(f"{ARCHIVE}: {len(drawings):,} drawings, {ARCHIVE.stat().st_size / 1e6:.2f} MB, sha256 {digest}")


def choose(folder: Path) -> dict[str, bytes]:
    """WebP data of COUNT drawings by their names in the archive."""
    chosen: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for path in sorted(candidates(folder), key=lambda path: hashlib.sha256(path.encode()).digest()):
        drawing = shrink(folder / path)
        if drawing is None:
            continue
        thumbnail = drawing.convert("RGBA").resize((8, 8), Image.Resampling.BOX).quantize(8).tobytes()
        if thumbnail in seen:  # the same drawing in another folder
            continue
        seen.add(thumbnail)
        data = io.BytesIO()
        drawing.save(data, "WEBP", lossless=True, quality=100, method=4)
        chosen[path.removesuffix(".png") + ".webp"] = data.getvalue()
        if len(chosen) == COUNT:
            break
    return chosen


def candidates(folder: Path) -> Iterator[str]:
    """The paths of the drawings to choose from. Of a drawing in color and in black and white, the first."""
    for file in sorted(folder.rglob("*.png")):
        path = file.relative_to(folder).as_posix()
        name = f"{file.stem.lower()}_"
        colored = file.with_name(re.sub(r"_bw(?=[_.])", "", file.name))
        if (
            path.startswith(tuple(f"{each}/" for each in FOLDERS))
            and not path.startswith(tuple(f"{each}/" for each in EXCLUDED_FOLDERS))
            and not any(word in name for word in EXCLUDED_WORDS)
            and (colored == file or not colored.exists())
        ):
            yield path


def shrink(file: Path) -> Image.Image | None:
    """The drawing without its transparent margin, at most SIDE pixels a side, in COLORS colors. None for a
    drawing that is too small or too large, or has a side four times as long as the other.
    """
    with Image.open(file) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        drawing = opened.convert("RGBA")
    box = drawing.getchannel("A").getbbox()
    if box is None:
        return None
    drawing = drawing.crop(box)
    if max(drawing.size) < MIN_SIDE or max(drawing.size) > 4 * min(drawing.size):
        return None
    drawing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return drawing.quantize(COLORS, method=Image.Quantize.FASTOCTREE).convert("RGBA")


if __name__ == "__main__":
    main()
