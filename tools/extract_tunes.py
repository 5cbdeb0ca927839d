"""Makes musiclm_jax/corpus/sampled/tunes.json.gz: tunes by people, from the files that the wheel of music21 10.5.1 contains.

    pip install music21==10.5.1
    python tools/extract_tunes.py musiclm_jax/corpus/sampled/tunes.json.gz

musiclm_jax/corpus/sampled/TUNES.md says which collections are read and under which terms. Only the files are used, not the code of music21: ABC is
read here, as far as these collections need it. A tune is kept if its parts have 4, 8 or 16 whole bars of 4/4, 3/4 or 6/8, and if its key is beyond
doubt: header, last note and the key that the melody's notes suggest (Krumhansl and Kessler 1982) agree, and no degree says another mode.

A beat has 12 ticks: a quarter, in 6/8 a dotted quarter. 2/4 is written as 4/4, with notes of twice the length if there are many sixteenths. Output:
{"collections": [...], "tunes": [[title, collection, meter, tonic, "major" or "minor", [[bars, pickup, [pitch, length, ...]], ...]], ...]}, with 0 for the
pitch of a rest, and the pickup in ticks before the first bar.
"""

import dataclasses
import fractions
import gzip
import importlib.util
import json
import pathlib
import re
import sys

import numpy as np

COLLECTIONS = {
    "airdsAirs": "aird",
    "oneills1850": "o'neill",
    "ryansMammoth": "ryan",
    "miscFolk/americanfifeopus.abc": "american fife",
    "miscFolk/northumbrianminstrelsyopus.abc": "northumbrian",
}
# A file that says one of these is not used.
_RESERVED = re.compile(r"copyright|©|all rights|permission|non-?commercial|licen[cs]e", re.IGNORECASE)
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARPS = "FCGDAEB"
# Sharps of a key with the tonic on C, by mode.
_MODES = {"": 0, "maj": 0, "ion": 0, "m": -3, "min": -3, "aeo": -3}
_METERS = {"C": (4, 4), "C|": (4, 4), "4/4": (4, 4), "2/2": (4, 4), "2/4": (2, 4), "3/4": (3, 4), "6/8": (6, 8)}
# Krumhansl and Kessler's profiles.
_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
# In semitones, and in shares of the whole.
_WIDEST, _MOST_REST = 21, 0.1
_TOKEN = re.compile(
    r'"[^"]*"|![^!]*!|\{[^}]*\}|\[[A-Z]:[^\]]*\]|\((?P<tuplet>\d)(?::(?P<q>\d?))?(?::(?P<r>\d?))?'
    r"|(?P<bar>:*\|[\]|:]*:*|::|\[\|)\s*(?P<ending>\[?[12])?|(?P<opening>\[[12])"
    r"|\[(?P<chord>[^\]]*)\](?P<chord_length>[\d/]*)|(?P<note>[\^_=]*[A-Ga-gzx][,']*)(?P<length>[\d/]*)(?P<tie>-?)|(?P<broken>[<>]+)|(?P<other>.)",
    re.DOTALL,
)


@dataclasses.dataclass
class Part:
    """A part of a tune: bars of [pitch, length in quarters], 0 for rests."""

    bars: list[list[list]]


def main(path: str) -> None:
    root = pathlib.Path(importlib.util.find_spec("music21").origin).parent / "corpus"
    tunes, seen = [], set()
    for folder, collection in COLLECTIONS.items():
        files = sorted((root / folder).iterdir()) if (root / folder).is_dir() else [root / folder]
        found = [tune for file in files for tune in _read_file(file, collection)]
        for tune in found:
            keys = _fingerprints(tune)
            if not seen & keys:
                tunes.append(tune)
            seen |= keys
        print(f"{collection}: {len(found)} tunes, {sum(tune[1] == collection for tune in tunes)} kept")
    text = json.dumps({"collections": list(COLLECTIONS.values()), "tunes": tunes}, separators=(",", ":"), ensure_ascii=True)
    pathlib.Path(path).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    minor = sum(tune[4] == "minor" for tune in tunes)
    print(f"{len(tunes)} tunes, {minor} in minor; meters: { ({m: sum(t[2] == m for t in tunes) for m in ('4/4', '3/4', '6/8')}) }")
    print(f"{path}: {pathlib.Path(path).stat().st_size} bytes")


def _read_file(file: pathlib.Path, collection: str) -> list[list]:
    text = file.read_text(errors="replace")
    blocks = [] if file.suffix != ".abc" or _RESERVED.search(text) else re.split(r"(?m)^(?=X:)", text)[1:]
    return [tune for block in blocks if (tune := _abc_tune(block, collection)) is not None]


def _abc_tune(block: str, collection: str) -> list | None:
    head, _, body = re.sub(r"(?m)%.*$", "", block).partition("\nK:")
    fields = dict(reversed([(line[0], line[2:].strip()) for line in head.splitlines() if re.match(r"[A-Z]:", line)]))
    key, _, body = body.partition("\n")
    meter, key = _METERS.get(fields.get("M", "")), _read_key(key.strip())
    if meter is None or key is None or re.search(r"(?m)^[VMKL]:|\[[VMKL]:", body):  # Several voices, meters or keys.
        return None
    body = "\n".join(line.rstrip("\\ ") for line in body.splitlines() if not re.match(r"[A-Za-z]:", line))
    unit = fractions.Fraction(fields.get("L", "1/8").split()[0]) * 4
    try:
        parts = _abc_parts(body, unit, key[2])
    except (ValueError, ZeroDivisionError, KeyError, IndexError):
        return None
    return _tune(_title(fields.get("T", ""), fields.get("X", "")), collection, meter, key[0], key[1], parts)


def _read_key(text: str) -> tuple[int, str, dict[str, int]] | None:
    """(tonic, mode, letter -> alteration); None for other modes than major and minor."""
    match = re.match(r"([A-G])([#b]?)\s*([A-Za-z]*)\s*$", text)
    mode = match and match[3][:3].lower() if match and match[3] != "m" else "m" if match else None
    if match is None or mode not in _MODES:
        return None
    sharps = _SHARPS.index(match[1]) - 1 + 7 * ((match[2] == "#") - (match[2] == "b")) + _MODES[mode]
    altered = dict.fromkeys(_SHARPS[:sharps], 1) if sharps > 0 else dict.fromkeys(_SHARPS[sharps:] if sharps else "", -1)
    tonic = (_LETTERS[match[1]] + (match[2] == "#") - (match[2] == "b")) % 12
    return tonic, "minor" if _MODES[mode] else "major", altered


def _abc_parts(text: str, unit: fractions.Fraction, altered: dict[str, int]) -> list[Part]:
    """Reads the notes. Of the first and second endings the second is taken."""
    parts, bars, bar, accidentals = [], [], [], {}
    scale, in_tuplet, broken, tied, skipping = fractions.Fraction(1), 0, None, False, False
    for token in _TOKEN.finditer(text):
        if token["tuplet"]:
            count = int(token["tuplet"])
            in_tuplet = int(token["r"] or count)
            scale = fractions.Fraction(int(token["q"] or {2: 3, 3: 2, 4: 3, 6: 2}[count]), count)
        elif token["bar"] or token["opening"]:
            ending = (token["ending"] or token["opening"] or "").strip("[")
            if bar and not skipping:
                bars.append(bar)
            bar, accidentals = [], {}
            mark = token["bar"] or ""
            if (":" in mark or mark in ("||", "|]", "[|")) and ending != "2" and not skipping:
                parts, bars = (parts + [Part(bars)] if bars else parts), []
            skipping = ending == "1" or (skipping and ending != "2")
        elif token["broken"]:
            broken = token["broken"]
            if bar and not skipping:
                bar[-1][1] *= _broken(broken, first=True)
        elif token["note"] or token["chord"]:
            name = token["note"] or re.findall(r"[\^_=]*[A-Ga-g][,']*", token["chord"])[-1]
            length = unit * _length(token["length"] or token["chord_length"] or "") * scale
            if token["chord"]:
                inner = re.search(r"[A-Ga-g][,']*([\d/]+)", token["chord"])
                length *= _length(inner[1]) if inner else 1
            if broken:
                length, broken = length * _broken(broken, first=False), None
            in_tuplet -= 1
            scale = scale if in_tuplet > 0 else fractions.Fraction(1)
            pitch = _pitch(name, altered, accidentals)
            if tied and bar and bar[-1][0] == pitch:
                bar[-1][1] += length
            else:
                bar.append([pitch, length])
            tied = bool(token["tie"])
    bars += [bar] if bar and not skipping else []
    return parts + ([Part(bars)] if bars else [])


def _length(text: str) -> fractions.Fraction:
    numerator, _, rest = text.partition("/")
    divisor = 2 ** (rest.count("/") + 1) if not rest.strip("/") else int(rest.strip("/"))
    return fractions.Fraction(int(numerator or 1), divisor if "/" in text else 1)


def _broken(signs: str, *, first: bool) -> fractions.Fraction:
    short = fractions.Fraction(1, 2 ** len(signs))
    return 2 - short if (signs[0] == ">") == first else short


def _pitch(name: str, altered: dict[str, int], accidentals: dict[str, int]) -> int:
    signs, letter, marks = re.fullmatch(r"([\^_=]*)([A-Ga-gzx])([,']*)", name).groups()
    if letter in "zx":
        return 0
    if signs:
        accidentals[letter, marks] = signs.count("^") - signs.count("_")
    alteration = accidentals.get((letter, marks), altered.get(letter.upper(), 0))
    return (60 if letter.isupper() else 72) + _LETTERS[letter.upper()] + 12 * (marks.count("'") - marks.count(",")) + alteration


def _title(text: str, number: str) -> str:
    return re.sub(r"\s*--.*$", "", text).strip(" .,;:") or f"number {number}"


def _tune(title: str, collection: str, meter: tuple[int, int], tonic: int, mode: str, parts: list[Part]) -> list | None:
    """The tune as it is written to the file; None if it is not kept."""
    bar = fractions.Fraction(4 * meter[0], meter[1])
    notes = [note for part in parts for notes in part.bars for note in notes]
    doubled = meter == (2, 4) and sum(length < 0.5 for _, length in notes) > len(notes) / 4
    ticks = 8 if meter == (6, 8) else 24 if doubled else 12
    joined = 2 if meter == (2, 4) and not doubled else 1
    sections = [section for part in parts if (section := _section(part.bars, bar, ticks, joined)) is not None][:4]
    pitches = [pitch for section in sections for pitch in section[2][::2] if pitch]
    if not sections or max(pitches) - min(pitches) > _WIDEST or len(sections) < len(parts) / 2 or not _in_key(sections, tonic, mode):
        return None
    return [title, collection, "4/4" if meter == (2, 4) else f"{meter[0]}/{meter[1]}", tonic, mode, sections]


def _section(bars: list[list], bar: fractions.Fraction, ticks: int, joined: int) -> list | None:
    """[bars, pickup, [pitch, length, ...]] in ticks; None if bars are not whole or notes are off the grid."""
    lengths = [sum(length for _, length in notes) for notes in bars]
    pickup = lengths[0] if lengths[0] < bar else 0
    whole = lengths[1:] if pickup else lengths
    if not whole or any(length != bar for length in whole[:-1]) or not 0 <= bar - whole[-1] <= max(pickup, bar / 2):
        return None
    if len(whole) % joined or len(whole) // joined not in (4, 8, 16) or pickup * ticks > bar * ticks * joined / 2:
        return None
    line = []
    for pitch, length in ([pitch, length * ticks] for notes in bars for pitch, length in notes):
        if length.denominator != 1:
            return None
        if line and not pitch and not line[-2]:
            line[-1] += int(length)
        else:
            line += [pitch, int(length)]
    rests = sum(length for tone, length in zip(line[::2], line[1::2], strict=True) if not tone)
    sparse = sum(map(bool, line[::2])) < len(whole) or rests > _MOST_REST * sum(line[1::2])
    return None if sparse else [len(whole) // joined, int(pickup * ticks), line]


def _in_key(sections: list, tonic: int, mode: str) -> bool:
    """Whether the last note is the tonic, the notes suggest the key, and few of them are outside its scale."""
    weights = np.zeros(12)
    for _, _, line in sections:
        for pitch, length in zip(line[::2], line[1::2], strict=True):
            weights[(pitch - tonic) % 12] += length * bool(pitch)
    finals = [pitch for pitch in sections[-1][2][::2] if pitch]
    fits = {(key, name): np.corrcoef(np.roll(profile, key), weights)[0, 1] for name, profile in _PROFILES.items() for key in range(12)}
    modal = weights[10] > 0.5 * weights[11] if mode == "major" else weights[9] > 0.5 * weights[8]
    strange = weights[[1, 3, 6, 8] if mode == "major" else [1, 4, 6]].sum() > 0.06 * weights.sum()
    thirds = weights[4 if mode == "major" else 3] > 3 * weights[3 if mode == "major" else 4] and weights[4 if mode == "major" else 3] > 0.04 * weights.sum()
    return max(fits, key=fits.get) == (0, mode) and finals[-1] % 12 == tonic and thirds and not modal and not strange


def _fingerprints(tune: list) -> set:
    """What two versions of one tune have in common: the title, and how it begins."""
    title, tonic = re.sub(r"^(the|a) |[^a-z0-9]", "", tune[0].lower()), tune[3]
    first = [(pitch - tonic) % 12 for pitch in tune[5][0][2][::2] if pitch][:14]
    return {title, (tune[2], *first)}


if __name__ == "__main__":
    main(sys.argv[1])
