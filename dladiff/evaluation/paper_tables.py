"""The DLADiff paper's numbers, as printed in its Tables 1 to 5, 9 and 10, for the paper's models and photos."""

from dataclasses import dataclass

PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")
"""Prompts of the generated pictures."""
NAMES = {
    "clean": "w/o Protect",
    "mist": "MIST",
    "aspl": "Anti-DB",
    "disdiff": "DisDiff",
    "anti-diffusion": "Anti-diffusion",
    "dladiff": "Ours",
    "without_dsur": "w/o DSUR",
    "without_adft": "w/o ADFT",
    "without_layer2": "w/o Anti-ZS",
}
"""Name of a method here to its name in the paper, which calls ASPL "Anti-DB"."""


@dataclass(frozen=True)
class PaperTable:
    """One table: column heads, and the printed cells by the method's name here ("" for an empty cell)."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


def _table(columns: str, rows: str) -> PaperTable:
    """Parse lines of `method: cell cell ...`; "-" is an empty cell."""
    heads = tuple(part.strip() for part in columns.split("|"))
    cells_of = {}
    for line in rows.strip().splitlines():
        name, cells = line.strip().split(":")
        cells_of[name] = tuple("" if cell == "-" else cell for cell in cells.split())
    return PaperTable(heads, cells_of)


_SCORES = "FDR | ISM | FID | FIQA | MOS"
_ONE = " | ".join(f"{data} {score.strip()}" for data in ("CelebA-HQ", "VGGFace2") for score in _SCORES.split("|"))

TABLE_1_FIRST_PROMPT = _table(
    _ONE,
    """
    clean: 0.996 0.580 53.44 0.385 - 0.928 0.521 62.53 0.383 -
    mist: 0.980 0.516 94.49 0.252 3.36 0.844 0.268 175.8 0.270 2.55
    aspl: 0.851 0.452 144.4 0.235 2.63 0.677 0.300 186.7 0.220 1.98
    disdiff: 0.482 0.241 201.8 0.207 1.79 0.741 0.362 187.4 0.201 1.83
    anti-diffusion: 0.802 0.425 164.6 0.239 2.37 0.824 0.318 165.1 0.238 2.46
    dladiff: 0.201 0.096 233.7 0.225 1.57 0.608 0.263 194.0 0.217 1.76
    """,
)
"""DreamBooth on SD 2.1, "a photo of sks person"."""

TABLE_1_SECOND_PROMPT = _table(
    _ONE,
    """
    clean: 0.934 0.364 92.88 0.436 - 0.907 0.397 93.70 0.423 -
    mist: 0.948 0.368 106.1 0.309 3.43 0.822 0.257 186.9 0.273 2.12
    aspl: 0.892 0.328 166.4 0.280 2.41 0.746 0.265 200.7 0.217 1.86
    disdiff: 0.861 0.322 145.2 0.242 2.32 0.880 0.375 137.7 0.240 2.43
    anti-diffusion: 0.906 0.350 138.8 0.281 2.56 0.842 0.329 160.7 0.243 2.54
    dladiff: 0.668 0.264 187.9 0.252 1.68 0.807 0.310 177.1 0.221 2.09
    """,
)
"""The same models, "a dslr portrait of sks person"."""

TABLE_2 = _table(
    _SCORES,
    """
    clean: 0.942 0.433 58.51 0.386 -
    mist: 0.988 0.388 86.11 0.295 3.48
    aspl: 0.776 0.280 152.3 0.240 2.39
    disdiff: 0.770 0.306 135.6 0.240 2.58
    anti-diffusion: 0.825 0.298 146.6 0.265 2.72
    dladiff: 0.728 0.199 182.4 0.280 1.37
    """,
)
"""LoRA."""

TABLE_3 = _table(
    "FDR | ISM | FID | NSFWR",
    """
    mist: 0.604 0.313 213.3 0.263
    aspl: 0.606 0.323 239.4 0.341
    disdiff: 0.148 0.076 327.6 0.481
    anti-diffusion: 0.258 0.139 312.1 0.493
    dladiff: 0.070 0.031 407.8 0.733
    """,
)
"""Another base model than the surrogate's: SD 1.5."""

_ZERO_SHOT = " | ".join(f"{data} {score}" for data in ("CelebA-HQ", "VGGFace2") for score in ("ISM_pro", "ISM_gen"))

TABLE_4_FACEID = _table(
    _ZERO_SHOT,
    """
    mist: 0.970 0.409 0.963 0.380
    aspl: 0.965 0.409 0.966 0.379
    disdiff: 0.951 0.405 0.965 0.375
    anti-diffusion: 0.971 0.412 0.968 0.381
    dladiff: 0.090 0.039 0.074 0.038
    """,
)
"""IP-Adapter FaceID on SD 1.5."""

TABLE_4_INSTANTID = _table(
    _ZERO_SHOT,
    """
    mist: 0.962 0.615 0.959 0.622
    aspl: 0.955 0.612 0.963 0.621
    disdiff: 0.960 0.606 0.960 0.620
    anti-diffusion: 0.968 0.606 0.965 0.620
    dladiff: 0.091 0.049 0.077 0.058
    """,
)
"""InstantID on SDXL."""

TABLE_5_FINE_TUNING = _table(
    "ISM | FDR | FID | FIQA",
    """
    without_dsur: 0.160 0.316 213.7 0.236
    without_adft: 0.277 0.607 180.9 0.244
    dladiff: 0.096 0.201 233.7 0.221
    """,
)
"""Ablation of layer 1. The paper prints FIQA .221 for "ours" here and .225 in Table 1."""

TABLE_5_ZERO_SHOT = _table(
    "Faceid ISM_pro | Faceid ISM_gen | InstantID ISM_pro | InstantID ISM_gen",
    """
    without_layer2: 0.974 0.398 0.965 0.618
    dladiff: 0.082 0.039 0.054 0.084
    """,
)
"""Ablation of layer 2. The two InstantID cells of the last row look swapped in the paper; they are kept as printed."""

TABLE_9 = _table("PSNR", "mist: 34.61\naspl: 34.52\ndisdiff: 35.16\nanti-diffusion: 35.24\ndladiff: 35.06")
"""PSNR of the protected photos, dB."""

TABLE_10 = _table(
    "DB-C FID | DB-V FID | LoRA FID",
    """
    mist: - 306.8 172.3
    aspl: 220.1 306.6 243.7
    disdiff: 286.2 293.4 230.3
    anti-diffusion: 239.7 298.0 232.5
    dladiff: 320.7 314.4 284.1
    """,
)
"""FID of each person alone. MIST's first cell is missing in our copy of the paper."""
