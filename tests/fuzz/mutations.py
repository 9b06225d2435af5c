"""Small changes to sound files: of their bytes, of the trees that they hold, of texts."""

import io
import struct
import zipfile

import torch

from pl_rl.checkpoints.format import with_checksum

TENSORS = [
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten()[:-1],
    lambda t: t.to(torch.float64),
    lambda t: t.to(torch.int32),
    lambda t: t.bool(),
    lambda t: torch.cat([t.reshape(-1)] * 2),
    lambda t: t * 0,
    lambda t: -t if t.dtype.is_floating_point else ~t,
    lambda t: t.to(torch.float32) * torch.nan,
    lambda t: t.mT if t.ndim > 1 else t[None],
    lambda t: t[:0] if t.ndim else t,
    lambda t: t.tolist(),
    lambda t: t.reshape(-1)[:1].expand(10**9),
]
"""Others much like a tensor."""

EXTREMES = [
    None, True, False, -1, 0, 1, 2, 255, 10**6, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 2**1500,
    0.0, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "0", "-1", "nan", "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe", "\ud800", "[bold]x[/bold]", "[/]",
    "$\\frac$", "../../x", "/dev/zero", "a" * 5000, "a\0b", b"bytes", b"", 1j,
]  # fmt: skip


def containers():
    """Containers and tensors that fit nowhere, made anew each time."""
    shared = [0] * 10
    for _ in range(9):
        shared = [shared] * 10
    deep = []
    for _ in range(200):
        deep = [deep]
    itself = []
    itself.append(itself)
    holds_itself = {}
    holds_itself["again"] = holds_itself
    return [
        [], {}, (), set(), {1: 2}, {"": None}, {None: 1}, [[]], [None] * 1000, {"a": {"b": {}}}, (1, 2),
        (1.0, 2.0, 3.0), shared, deep, itself, holds_itself, {(1, 2): 3}, bytearray(3), {"x", "y"},
        torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64),
        torch.tensor(float("nan")), torch.tensor(-1), torch.full((3,), torch.inf), torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.complex64), torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(5056, dtype=torch.uint8),
        torch.zeros(1).expand(4_000_000_000), torch.zeros(1, 1).expand(100_000, 100_000), torch.zeros(2, 2).to_sparse(),
        torch.empty(10**6, 10**6, device="meta"), torch.nn.Parameter(torch.zeros(3)), torch.zeros(4, 4).T[1:],
        torch.float32, torch.device("cpu"), torch.Size([1, 2]),
    ]  # fmt: skip


def places(tree, path=()):
    """The path of each node of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = [path]
    for key, item in items:
        # A random state has 625 numbers, of which a few are as good as all.
        if not (isinstance(key, int) and len(tree) > 20 and key > 3):
            found += places(item, (*path, key))
    return found


def mutated_tree(rng, tree, paths):
    """A tree with one or two of its nodes replaced, deleted, doubled or altered."""
    for _ in range(1 if rng.random() < 0.7 else 2):
        tree = _changed(rng, tree, rng.choice(paths))
    return tree


def _changed(rng, tree, path):
    if not path:
        return tree if rng.random() < 0.9 else rng.choice([*EXTREMES, *containers()])
    key, rest = path[0], path[1:]
    if isinstance(tree, dict) and key in tree:
        copy = type(tree)(tree)
    elif isinstance(tree, list | tuple) and isinstance(key, int) and key < len(tree):
        copy = list(tree)
    else:
        return tree  # the first change took it away
    if rest:
        copy[key] = _changed(rng, copy[key], rest)
    else:
        _alter(rng, copy, key)
    return tuple(copy) if type(tree) is tuple else copy


def _alter(rng, parent, key):
    what = rng.choice(("replace", "replace", "replace", "vary", "vary", "delete", "double", "swap", "rename"))
    if what == "delete":
        del parent[key]
    elif what == "double" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif what == "swap" and len(parent) > 1:
        other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif what == "rename" and isinstance(parent, dict):
        parent[rng.choice(["x", 0, None, 1.5, True, (1,), "\x1b[31m", f"{key}."])] = parent.pop(key)
    elif what == "vary":
        parent[key] = _varied(rng, parent[key])
    else:
        parent[key] = rng.choice(EXTREMES) if rng.random() < 0.5 else rng.choice(containers())


def _varied(rng, value):
    """A value much like it, or itself where the first change left nothing to vary: sparse, endless, huge."""
    try:
        return _much_like(rng, value)
    except (RuntimeError, TypeError, OverflowError):
        return value


def _much_like(rng, value):
    if isinstance(value, torch.Tensor):
        return rng.choice(TENSORS)(value)
    if isinstance(value, bool):
        return rng.choice([not value, int(value), str(value)])
    if isinstance(value, int | float):
        return rng.choice([value + 1, -value, value * 10, value - 1, float(value), str(value), [value], value + 10**12])
    if isinstance(value, str):
        return rng.choice(
            [
                value[:-1],
                value + "x",
                value.upper(),
                value * 2,
                "\x1b[0m" + value,
                value.encode(errors="surrogatepass"),
                [value],
            ]
        )
    if isinstance(value, list | tuple):
        return rng.choice(
            [value[:-1], [*value, *value], tuple(value), list(value), dict(enumerate(value)), value[::-1]]
        )
    if isinstance(value, dict):
        return rng.choice([list(value), list(value.items()), dict.fromkeys(value), {}, {**value, "x": 1}])
    return rng.choice(EXTREMES)


def mutated_bytes(rng, data):
    """Bytes of which some are flipped, overwritten, cut, repeated or moved."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 100))
        what = rng.randrange(7)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + length] = rng.randbytes(length)
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        elif what == 4:
            data[at : at + length] = rng.choice((b"\xff", b"\0", b"\x7f")) * length
        elif what == 5:
            data[at : at + 8] = struct.pack(rng.choice("<>") + "Q", rng.choice((2**63 - 1, 2**32, 2**31, len(data), 0)))
        else:
            data = data[: max(at, 1)]
    return bytes(data)


def mutated_archive(rng, data, checksum):
    """A zip archive with one of its parts mutated and all checksums right again; now and then compressed or doubled."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = {part.filename: source.read(part) for part in source.infolist()}
    # The program that makes the tree is worth more than numbers.
    pickles = [name for name in parts if name.endswith((".pkl", "data", ".pth"))]
    name = rng.choice(pickles if pickles and rng.random() < 0.8 else list(parts))
    parts[name] = mutated_bytes(rng, parts[name])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((0, 0, 0, 0, 0, zipfile.ZIP_DEFLATED))) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return with_checksum(file.getvalue()) if checksum else file.getvalue()


def saved(tree, checksum):
    """A tree as ``torch.save`` writes it; ``None`` where it cannot."""
    file = io.BytesIO()
    try:
        torch.save(tree, file)
    except Exception:
        return None
    return with_checksum(file.getvalue()) if checksum else file.getvalue()


YAML_PIECES = [
    "&a ", "*a", "<<: *a", "{", "}", "[", "]", ": ", "- ", "\n", "  ", "? ", "!!int ", "!!timestamp ", "!!binary ",
    "!!set ", "!!python/name:os.system ", "\0", "\ufeff", "\x85", "\u2028", "|\n", ">\n", "#", "'", '"', "%YAML 9.9\n",
    "---\n",
    "...\n", "2024-99-99", "0x" + "f" * 2000, "1:" * 300 + "1", "9" * 5000, "1e999", ".nan", "~", "@", "`", "\t",
    "\x1b[2J", "[" * 300,
    "a: &b [*b]\n", "k: &x [1,2,3,4]\nl: &y [*x,*x,*x,*x]\n",
]  # fmt: skip


def mutated_text(rng, text):
    """A text with pieces of YAML put in, lines moved, characters changed."""
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(6)
        if what < 3:
            text = text[:at] + rng.choice(YAML_PIECES) + text[at:]
        elif what == 3:
            text = text[:at] + text[at + rng.choice((1, 3, 20)) :]
        elif what == 4:
            lines = text.splitlines(keepends=True)
            rng.shuffle(lines)
            text = "".join(lines)
        else:
            piece = text[at : at + 60]
            text = text[:at] + piece * rng.choice((2, 20)) + text[at:]
    return text
