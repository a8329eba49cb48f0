"""What a file is: by its extension where that is known, else by its first bytes."""

import re
from collections.abc import Iterator

LOOK = 64  # bytes read of a file whose extension is unknown: every signature below, with the brands of a HEIF file

PICTURES = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjpg .pjp .jpg_large .jpeg_large .jpg_small .mpo .png .apng .webp .bmp "
    ".dib .tif .tiff .gif .heic .heics .heif .heifs .hif .avif .avifs "
    ".jp2 .j2k .j2c .jpc .jpf .jpx .jxl .jxr .wdp .hdp .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 "
    ".pef .srw .3fr .iiq .x3f .psd .psb .tga .ppm .pgm .pbm .pnm .pam .exr .hdr".split()
)
"""Extensions of pictures, which are planned without a look. One that cannot be decoded fails with its format's name."""
SHARDS = frozenset({".parquet", ".tar"})
"""Extensions of files that may hold photos in rows or members (`pipeline.sources.shards`)."""
NOT_PHOTOS = {
    "text or data": ".txt .md .rst .rtf .tex .csv .tsv .json .jsonl .ndjson .yaml .yml .toml .xml .html .htm .xhtml "
    ".css .js .log .ini .cfg .conf .properties .srt .vtt .sql .db .sqlite .sqlite3 .mdb .npy .npz .mat .h5 .hdf5 "
    ".pkl .pt .pth .ckpt .safetensors .onnx .arrow .feather .lmdb .bin .dat .idx",
    "a note beside a photo": ".aae .xmp .thm .pp3 .nomedia .info .md5 .sha1 .sha256 .sfv .crc",
    "a video or a sound": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .mts .m2ts .3gp .3g2 .wmv .flv .insv .lrv .mp3 "
    ".m4a .aac .wav .flac .ogg .opus .wma .aif .aiff .amr .mid",
    "a document": ".pdf .doc .docx .xls .xlsx .ppt .pptx .odt .ods .odp .pages .numbers .key .epub .ps .eps .ai .indd",
    "a drawing or an icon": ".svg .svgz .ico .icns .cur .dwg .dxf .ttf .otf .woff .woff2",
    "an archive or a disk": ".zip .7z .rar .gz .tgz .bz2 .xz .zst .iso .dmg .jar .apk .deb .rpm",
    "a program or a system file": ".exe .dll .so .dylib .app .msi .bat .cmd .sh .ps1 .py .pyc .ipynb .c .h .cpp .java "
    ".rs .go .rb .php .lnk .url .webloc .desktop .torrent .part .crdownload .tmp .lock .bak .swp",
}
"""Extensions of files that are no photos, by what they are; counted without a look."""
NO_PHOTO = {ending: what for what, endings in NOT_PHOTOS.items() for ending in endings.split()}

SYSTEM = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"),
        *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("__macosx", "icon\r", "network trash folder", "temporary items", "lost+found"),
    }
)
"""Lower-case names that systems write by themselves: Synology, QNAP, Windows, macOS, ext4."""

SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"8BPS", b"v/1\x01", b"#?RADIANCE",
    b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb",
)  # fmt: skip
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
RAW_BRANDS = frozenset({b"crx "})  # Canon CR3
BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # bytes of a bitmap's second header, by version
NETPBM = re.compile(rb"P[1-7]\s")
IN_SHARD = re.compile(r"(?:\.parquet#row=|\.tar#member=)", re.IGNORECASE)  # a row or member of a file of SHARDS
VERSION = re.compile(r"\.\d{1,4}$")  # what downloaders and log rotation append: a.jpg.1


def is_photo_name(key: str) -> bool | None:
    """Return whether a key's extension says that it is a picture; None where its bytes must be read."""
    for ending in _endings(key.rpartition("/")[2]):
        if ending in PICTURES:
            return True
        if ending in NO_PHOTO or ending in SHARDS:
            return False
    return None


def ending_of(key: str) -> str:
    """Return the known extension of a key in lower case, else its last one, "" without one."""
    endings = [*_endings(key.rpartition("/")[2])]
    return next((one for one in endings if one in NO_PHOTO or one in SHARDS), endings[-1] if endings else "")


def is_picture(head: bytes) -> bool:
    """Return whether a file that begins with `head` (LOOK bytes) is a picture, decodable or not."""
    if head.startswith(SIGNATURES) or NETPBM.match(head):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        return int.from_bytes(head[14:18], "little") in BMP_HEADERS
    return bool(brands(head) & (HEIC_BRANDS | AVIF_BRANDS | RAW_BRANDS))


def brands(head: bytes) -> frozenset[bytes]:
    """Return the brands of an ISO media file (ISO/IEC 14496-12, 4.3), none for other files."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), len(head), LOOK)
    return frozenset({head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))})


def is_left_alone(key: str) -> bool:
    """Return whether a part of a key is hidden (".thumbs", "._a.jpg") or a system's own ("@eaDir")."""
    return any((part[:1] == "." and part.strip(".")) or part.lower() in SYSTEM for part in key.split("/"))


def _endings(name: str) -> Iterator[str]:
    """Yield the extensions that a name may stand for, lower case: without a query, spaces and a version first."""
    for text in dict.fromkeys((name.partition("?")[0], name)):
        bare = VERSION.sub("", text.strip())
        stem, dot, ending = bare.rpartition(".")
        if dot and stem:
            yield f".{ending.strip().lower()}"
