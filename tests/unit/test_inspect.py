"""What `inspect` says: recognised data, sizes, amplification, first records; against the obvious second count."""

from __future__ import annotations

import io
import json
import pickle
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fastio import Writer
from fastio.inspection import Report, inspect_dataset, print_report, sniff, to_json


def printed(report: Report) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=160, no_color=True))
    return out.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    schema = pa.schema(
        [
            pa.field("data", pa.binary(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("name", pa.string()),
        ]
    )
    with Writer(tmp_path / "images", schema, shard_bytes=400_000, batch_bytes=100_000, shuffle_seed=5) as writer:
        for i in range(50):
            writer.append(
                {"data": b"\x89PNG\r\n\x1a\n" + bytes(20_000 + i), "label": i, "name": None if i == 1 else "n"}
            )
    return tmp_path / "images"


def test_a_written_dataset_is_described(images: Path) -> None:
    report = inspect_dataset(images)
    assert (report.format, report.records, report.shuffled, report.sampled_records) == ("arrow", 50, 5, 50)
    assert [field.name for field in report.fields] == ["data", "label", "name"]
    data, label, _ = report.fields
    assert (data.strategy, data.min_bytes, data.max_bytes) == ("extent", 20_008, 20_057)
    assert data.mean_bytes == pytest.approx(20_032.5)
    assert label.payload_bytes == 400
    assert sum(shard.records for shard in report.shards) == 50
    assert len(report.shards) > 1
    assert sum(entry.records for entry in report.sizes) == 50
    # 20,008 to 20,057 bytes lie on five or six pages of 4,096.
    assert 1.0 < report.amplification < 6 * 4096 / 20_008
    assert report.first_records[0]["data"].startswith("PNG")
    assert report.first_records[1]["name"] == "null"
    assert report.first_records[2]["label"] == "2"


def test_it_is_printed_for_a_person(images: Path) -> None:
    text = printed(inspect_dataset(images))
    for words in ("arrow", "50", "one global shuffle, seed 5", "label", "20,000"[:2], "PNG", "extent", "shard-00000"):
        assert words in text


def test_json_is_stable(images: Path) -> None:
    found = json.loads(to_json(inspect_dataset(images)))
    assert found["version"] == 1
    assert " ".join(sorted(found)) == (
        "amplification fields file_bytes fingerprint first_records format index layout memory_bytes path payload_bytes "
        "records sampled_records shards shuffled sizes version"
    )
    assert " ".join(sorted(found["fields"][0])) == (
        "amplification arrow_type delivered dtype max_bytes mean_bytes min_bytes name nullable payload_bytes reason "
        "shape strategy"
    )
    assert sorted(found["shards"][0]) == ["bytes", "index", "path", "records"]
    assert sorted(found["sizes"][0]) == ["from_bytes", "records", "to_bytes"]


def test_lmdb_is_described(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"data": bytes}, format="lmdb") as writer:
        for i in range(20):
            writer.append({"data": b"%d" % i * 5_000})
    report = inspect_dataset(tmp_path / "d")
    assert (report.format, report.records) == ("lmdb", 20)
    assert [field.name for field in report.fields] == ["key", "value"]
    assert report.first_records[0]["key"] == "text '000000000000'"
    assert "lmdb" in printed(report)


def test_booleans_numbers_and_lists(tmp_path: Path) -> None:
    schema = {"flag": bool, "x": ("float32", (2, 2)), "tokens": pa.list_(pa.int32())}
    with Writer(tmp_path / "d", schema) as writer:
        writer.append({"flag": True, "x": np.ones((2, 2), np.float32), "tokens": [1, 2, 3]})
        writer.append({"flag": False, "x": np.zeros((2, 2), np.float32), "tokens": None})
    first, second = inspect_dataset(tmp_path / "d").first_records
    assert (first["flag"], second["flag"]) == ("True", "False")
    assert first["x"] == "float32 (2, 2) 1.0 1.0 1.0 1.0"
    assert first["tokens"] == "int32 (3,) 1 2 3"
    assert second["tokens"] == "null"


def test_a_field_that_goes_the_slow_way_says_why(tmp_path: Path) -> None:
    deep = pa.table({"m": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), "x": [1, 2]})
    with Writer(tmp_path / "d", deep.schema) as writer:
        writer.append_batch(deep)
    report = inspect_dataset(tmp_path / "d")
    (slow,) = (field for field in report.fields if field.strategy == "decoded")
    assert slow.reason
    assert slow.mean_bytes is None
    assert "slow way" in printed(report)


def test_sizes_are_a_sample_of_large_datasets(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"x": "int32"}) as writer:
        writer.append_batch({"x": np.arange(200_000, dtype=np.int32)})
    report = inspect_dataset(tmp_path / "d")
    assert report.sampled_records == 65_536
    assert [(entry.from_bytes, entry.to_bytes) for entry in report.sizes] == [(4, 8)]


def test_many_shards_are_not_all_printed(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"x": int}, shard_bytes=8) as writer:
        writer.append_batch({"x": range(12)})
    text = printed(inspect_dataset(tmp_path / "d"))
    assert "... and 4 more" in text


def wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


JPEG = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08" + struct.pack(">HH", 480, 640) + bytes(8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "empty"),
        (JPEG, "JPEG 640 x 480"),
        (b"\xff\xd8\xff", "JPEG, 3 bytes"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 28, 30), "PNG 28 x 30"),
        (b"GIF89a" + struct.pack("<HH", 7, 5), "GIF 7 x 5"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (wav(), "WAV 16,000 Hz, 2 channels"),
        (npy(np.zeros((3, 4), np.float32)), "NumPy <f4 (3, 4)"),
        (pickle.dumps({"a": 1}), "pickle-looking (protocol 4; fastio never unpickles)"),
        (pickle.dumps([1, 2], protocol=2), "pickle-looking (protocol 2"),
        (b"\x82\xa5image\xc4\x03abc\xa5label\x07" + b"\xff", "msgpack-looking, first key 'image'"),
        (b"PK\x03\x04....", "zip or npz"),
        (b'{"a": 1}', "JSON"),
        ("naïve".encode(), "text 'naïve'"),
        (b"\x00\x01\x02", "binary, 3 bytes"),
        (b"x" * 100, "text 'xxxx"),
    ],
)
def test_values_are_recognised_by_their_beginning(value: bytes, expected: str) -> None:
    assert sniff(value, len(value)).startswith(expected)


@given(st.binary(max_size=64), st.integers(0, 1 << 40))
def test_no_bytes_break_it(head: bytes, more: int) -> None:
    assert sniff(head, len(head) + more)


@given(st.text(min_size=20, alphabet="äöü€𝄞"), st.integers(1, 60))
def test_a_text_cut_inside_a_character_is_still_text(text: str, keep: int) -> None:
    whole = text.encode()
    assert sniff(whole[:keep], len(whole)).startswith("text")
