"""Saving and loading: exact round trips, and every kind of damaged or foreign file refused."""

import contextlib
import json
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import fastnn
from fastnn import nn, optim

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


def equal(a, b):
    """The same dtype, shape and bits."""
    as_float = a.dtype is fastnn.bfloat16
    x, y = ((t.float() if as_float else t).detach() for t in (a, b))
    return a.dtype is b.dtype and np.array_equal(x.numpy(), y.numpy())


# ---- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_exactly(name, tmp_path):
    dtype = getattr(fastnn, name)
    values = np.random.default_rng(0).integers(0, 2 if name == "bool" else 100, (3, 5))
    tensors = {
        "a": fastnn.tensor(values).to(dtype),
        "zero": fastnn.zeros(0, 3, dtype=dtype),
        "one": fastnn.ones((), dtype=dtype),
    }
    fastnn.save(tensors, tmp_path / "x.safetensors")
    loaded = fastnn.load(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert equal(value, loaded[key])
        assert loaded[key].shape == value.shape
    loaded["a"].zero_()  # what was loaded is writable


def test_strided_tensors_are_written_in_their_own_order(tmp_path):
    x = fastnn.tensor(np.arange(24.0).reshape(4, 6))
    views = {
        "transposed": x.T,
        "stepped": x[::2, 1::3],
        "row": x[2],
        "expanded": x[:, :1].expand(4, 5),
        "permuted": x.reshape(2, 3, 4).permute(2, 0, 1),
        "reversed": fastnn.tensor(np.arange(3.0)[::-1]),
    }
    fastnn.save(views, tmp_path / "views")
    for name, value in fastnn.load(tmp_path / "views").items():
        np.testing.assert_array_equal(value.numpy(), views[name].numpy(), err_msg=name)


def test_flat_files_are_plain_safetensors_both_ways(tmp_path):
    path = tmp_path / "flat.safetensors"
    fastnn.save({"layer.weight": fastnn.ones(2, 3), "layer.bias": fastnn.zeros(3)}, path)
    theirs = safetensors.numpy.load_file(path)
    assert theirs["layer.weight"].shape == (2, 3)
    assert set(theirs) == {"layer.weight", "layer.bias"}
    safetensors.numpy.save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    assert fastnn.load(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.torch
def test_bfloat16_bits_equal_torch(tmp_path):
    import torch
    from safetensors.torch import load_file

    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    fastnn.save({"x": fastnn.tensor(values).to(fastnn.bfloat16)}, tmp_path / "x")
    theirs = load_file(tmp_path / "x")["x"]
    assert theirs.dtype is torch.bfloat16
    assert torch.equal(theirs, torch.tensor(values).bfloat16())


def test_a_tree_keeps_its_structure(tmp_path):
    shared = fastnn.ones(2)
    tree = {
        "model": {"fc.weight": shared, "fc": {"weight": fastnn.zeros(1)}},
        "epoch": 3,
        7: [1.5, None, True, "text", (math.inf, [])],
        "big": 2**80,
        "again": shared,
        "empty": {},
    }
    fastnn.save(tree, tmp_path / "tree")
    back = fastnn.load(tmp_path / "tree")
    assert list(back) == list(tree)
    assert back[7] == tree[7]
    assert isinstance(back[7][4], tuple)
    assert back[7][2] is True
    assert back["epoch"] == 3
    assert back["big"] == 2**80
    assert back["empty"] == {}
    assert back["again"] is back["model"]["fc.weight"]
    assert back["again"].tolist() == [1, 1]
    assert back["model"]["fc"]["weight"].tolist() == [0]
    assert math.isnan(_round_trip({"x": math.nan}, tmp_path)["x"])
    assert _round_trip(fastnn.ones(2), tmp_path).tolist() == [1, 1]
    assert _round_trip({}, tmp_path) == {}
    assert _round_trip(5, tmp_path) == 5


def _round_trip(obj, folder):
    fastnn.save(obj, folder / "one")
    return fastnn.load(folder / "one")


def test_training_resumed_from_a_file_equals_uninterrupted_training(tmp_path):
    def fresh():
        fastnn.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = optim.AdamW(model.parameters(), lr=0.05)
        return model, optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def train(model, optimizer, scheduler, steps):
        rng = np.random.default_rng(0)
        x, y = (fastnn.tensor(rng.normal(size=s), dtype=fastnn.float32) for s in ((16, 5), (16, 1)))
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    whole = fresh()
    train(*whole, 10)
    first = fresh()
    train(*first, 4)
    fastnn.save({name: part.state_dict() for name, part in zip("mos", first, strict=True)}, tmp_path / "run")
    second = fresh()
    for name, part in zip("mos", second, strict=True):
        part.load_state_dict(fastnn.load(tmp_path / "run")[name])
    train(*second, 6)
    for name, value in whole[0].state_dict().items():
        assert equal(value, second[0].state_dict()[name])


def test_save_model_and_load_model(tmp_path):
    path = tmp_path / "model.safetensors"
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    fastnn.save_model(model, path)
    twin = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert fastnn.load_model(twin, path) == ([], [])
    x = fastnn.randn(2, 1, 4, 4)
    assert equal(model(x), twin(x))
    with pytest.raises(RuntimeError, match=r"missing[\s\S]*unexpected"):
        fastnn.load_model(nn.Linear(2, 2), path)
    fastnn.save({"a": [1]}, path)
    with pytest.raises(ValueError, match=r"model.safetensors.*tree"):
        fastnn.load_model(twin, path)


# ---- what cannot be saved --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"a": {1, 2}}, "a is a set"),
        ({"a": [np.ones(2)]}, r"a\.0 is a ndarray.*from_numpy"),
        (nn.Linear(1, 1), "state_dict"),
        ({(1, 2): 3}, r"key \(1, 2\)"),
        ({"a": lambda: 0}, "a is a function"),
    ],
)
def test_other_objects_are_refused_by_name(obj, text, tmp_path):
    with pytest.raises(TypeError, match=text):
        fastnn.save(obj, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_contains_itself_is_refused(tmp_path):
    loop = {"a": []}
    loop["a"].append(loop)
    with pytest.raises(ValueError, match=r"a\.0 contains itself"):
        fastnn.save(loop, tmp_path / "x")


# ---- damaged and foreign files ---------------------------------------------------------------------


def file_of(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DAMAGED = {
    "empty": b"",
    "short": b"\x05\x00",
    "truncated_header": file_of({"a": entry()}, bytes(8))[:20],
    "truncated_body": file_of({"a": entry()}, bytes(7)),
    "trailing_bytes": file_of({"a": entry()}, bytes(9)),
    "header_2_63": file_of({"a": entry()}, bytes(8), length=2**63),
    "header_over_100_mb": file_of({"a": entry()}, bytes(8), length=10**9),
    "shape_does_not_fit": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "shape_overflows": file_of({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
    "negative_shape": file_of({"a": entry(shape=(-2,))}, bytes(8)),
    "reversed_offsets": file_of({"a": entry(offsets=(8, 0))}, bytes(8)),
    "overlapping": file_of({"a": entry(), "b": entry()}, bytes(8)),
    "gap": file_of({"a": entry(), "b": entry(offsets=(16, 24))}, bytes(24)),
    "unknown_dtype": file_of({"a": entry(dtype="F33")}, bytes(8)),
    "not_json": file_of(b"{]", bytes(8)),
    "not_utf8": file_of(b'{"\xff\xfe": 1}'),
    "not_a_dict": file_of(b"[1]"),
    "duplicate_names": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "text": b"hello, this is not a model",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_raises_with_its_path(name, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        fastnn.load(path)


def test_any_flipped_byte_of_a_header_gives_a_tree_or_a_value_error(tmp_path):
    path = tmp_path / "flipped"
    fastnn.save({"a": fastnn.ones(2), "b": [fastnn.zeros(1), 3]}, path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(8 + struct.unpack("<Q", content[:8])[0]):
        changed = bytearray(content)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):  # nothing but a ValueError may come
            fastnn.load(path)


@pytest.mark.parametrize(
    "structure",
    ['{"tensor": "b"}', '{"dict": 5}', '{"list": 5}', "{", '{"a": 1, "b": 2}', '{"dict": [[[1], 2]]}', "[" * 100_000],
)
def test_a_structure_that_lies_raises(structure, tmp_path):
    (tmp_path / "lie").write_bytes(file_of({"a": entry(), "__metadata__": {"fastnn.structure": structure}}, bytes(8)))
    with pytest.raises(ValueError, match="lie"):
        fastnn.load(tmp_path / "lie")


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    bomb = pickle.dumps(Bomb())
    for name in ("bomb.pkl", "bomb.pt"):
        (tmp_path / name).write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w") as archive:
        archive.writestr("data.pkl", bomb)
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name, hint in (
        ("bomb.pkl", "Convert"),
        ("bomb.pt", "Convert"),
        ("bomb.bin", "Convert"),
        ("bomb.npy", "from_numpy"),
    ):
        with pytest.raises(ValueError, match=hint) as caught:
            fastnn.load(tmp_path / name)
        assert name in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_is_a_plain_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastnn.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="folder"):
        fastnn.save({"a": fastnn.ones(1)}, tmp_path / "no" / "folder")


# ---- sharded files ---------------------------------------------------------------------------------


def write_index(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_a_sharded_model_is_put_together(tmp_path):
    fastnn.save({"a": fastnn.ones(1)}, tmp_path / "1.safetensors")
    fastnn.save({"b": fastnn.zeros(1)}, tmp_path / "2.safetensors")
    assert set(fastnn.load(write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}))) == {"a", "b"}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", "a\\b", "a\0b", 3])
def test_a_shard_outside_the_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="plain file name"):
        fastnn.load(write_index(tmp_path, {"a": name}))


def test_a_bad_index_raises_with_its_path(tmp_path):
    path = write_index(tmp_path, {"a": "1", "b": "2"})
    fastnn.save({"a": fastnn.ones(1)}, tmp_path / "1")
    fastnn.save({"a": fastnn.ones(1)}, tmp_path / "2")
    with pytest.raises(ValueError, match="more than one file"):
        fastnn.load(path)
    for text in ("{", "[]", '{"weight_map": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json"):
            fastnn.load(path)


# ---- crashes ---------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model"
    fastnn.save({"a": fastnn.ones(3)}, path)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        fastnn.save({"a": fastnn.zeros(3)}, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert fastnn.load(path)["a"].tolist() == [1, 1, 1]


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    """kill -9 in the middle of a loop of saves: what is there is one of the states, complete."""
    path = tmp_path / "model"
    code = (
        "import fastnn, itertools\n"
        "for i in itertools.count():\n"
        f"    fastnn.save({{'a': fastnn.full((1000, 100), i % 100), 'i': i}}, {str(path)!r})\n"
    )
    for delay in (0.0, 0.03, 0.11):
        environment = {**os.environ, "PYTHONPATH": str(Path(fastnn.__file__).parents[1])}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = fastnn.load(path)
        assert (saved["a"].numpy() == saved["i"] % 100).all()
        path.unlink()


def test_saving_follows_a_link_and_replaces_its_target(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "model"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    fastnn.save({"a": fastnn.ones(1)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert fastnn.load(target)["a"].tolist() == [1]
