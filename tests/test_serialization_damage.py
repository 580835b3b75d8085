"""Bytes that are no object: always a SerializationError, and the right one."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyplane import _frames
from proxyplane.exceptions import SerializationError
from proxyplane.serialization import (
    decode,
    needs_worker,
)
from support.encoding import (
    Exits,
    Explodes,
    Point,
    forged,
    packed,
    reason_of,
    through,
)

SAMPLES = {
    "text": "héllo",
    "bytes": b"*" * 600,
    "dict": {"a": [1, 2.5, None], "b": "x" * 100},
    "array": np.arange(100.0),
    "arrays": [np.arange(100), np.arange(70.0), Point(1)],
    "closure": (lambda n: lambda: n)(7),
}


@pytest.fixture(params=SAMPLES, name="sample")
def _sample(request):
    return SAMPLES[request.param]


def protected(data):
    """Where header and in-band part end: everything before is always checked."""
    return _frames.read_header(memoryview(data)).inband[1]


@pytest.mark.row("bytes damaged")
class TestDamage:
    def test_every_byte_flipped(self, sample):
        """Any change of any byte of header or in-band part is an error, and the right one."""
        data = packed(sample)
        for at in range(protected(data)):
            for mask in (0x01, 0x80, 0xFF):
                damaged = bytearray(data)
                damaged[at] ^= mask
                reason = reason_of(damaged)
                needs_worker(damaged)
                if at < 4:
                    assert reason == "foreign"
                elif at == 4:
                    assert reason == "version"
                elif at == 5:
                    assert reason in ("corrupt", "key", "truncated")  # a bit says that it is signed
                elif 8 <= at < 12:
                    assert reason in ("corrupt", "truncated")
                else:
                    assert reason == "corrupt"

    def test_kept_header(self):
        """A header that was read before does not vouch for one that differs in a byte."""
        data = packed(b"*" * 600)
        for _ in range(2):
            decode(data)
            for at in range(protected(data)):
                damaged = bytearray(data)
                damaged[at] ^= 1
                with pytest.raises(SerializationError):
                    decode(damaged)

    def test_every_byte_flipped_with_checksum(self, sample):
        """With checksums, a change of any byte of a body is an error; padding means nothing."""
        data = packed(sample, checksum=True)
        header = _frames.read_header(memoryview(data))
        inside = set(range(header.inband[1]))
        end = header.inband[1]
        for length in header.lengths:
            start = (end + 63) // 64 * 64
            end = start + length
            inside.update(range(start, end))
        for at in range(len(data)):
            damaged = bytearray(data)
            damaged[at] ^= 0x10
            if at in inside:
                assert reason_of(damaged) in ("foreign", "version", "corrupt", "truncated")
            else:
                decode(damaged)

    @pytest.mark.parametrize("checksum", [False, True])
    def test_every_truncation(self, sample, checksum):
        """A cut at any byte says truncated, and nothing at all says empty."""
        data = packed(sample, checksum=checksum)
        assert reason_of(b"") == "empty"
        for length in range(1, len(data)):
            assert reason_of(data[:length]) == "truncated"

    @given(st.sampled_from(sorted(SAMPLES)), st.binary(min_size=1, max_size=200))
    def test_extension(self, name, tail):
        """Bytes after the end say trailing."""
        assert reason_of(packed(SAMPLES[name]) + tail) == "trailing"

    @given(st.binary(min_size=1, max_size=300))
    def test_random_bytes(self, data):
        """Bytes of something else say foreign."""
        if not _frames.MAGIC.startswith(data[:4]):
            assert reason_of(data) == "foreign"
        assert not needs_worker(data)

    @given(st.binary(max_size=300))
    def test_random_bytes_after_the_magic(self, data):
        """Bytes that begin well are still never an object."""
        assert reason_of(_frames.MAGIC + data) in ("truncated", "version", "corrupt")
        assert not needs_worker(_frames.MAGIC + data)

    @pytest.mark.parametrize(
        "foreign", [pickle.dumps([1]), b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"{}", bytes(100)]
    )
    def test_files_of_others(self, foreign):
        """A pickle, an array file, an archive, JSON and zeros are foreign."""
        assert reason_of(foreign) == "foreign"

    @settings(max_examples=300)
    @given(st.sampled_from(sorted(SAMPLES)), st.data())
    def test_scrambled(self, name, data):
        """Several changes at once, cuts and extensions: never a wrong object."""
        good = packed(SAMPLES[name], checksum=True)
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(1, 5))):
            at = data.draw(st.integers(0, len(bad)))
            bad[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if len(bad) != len(good) or bad[: protected(good)] != good[: protected(good)]:
            assert reason_of(bad)

    def test_future_version(self):
        """A later version asks for an upgrade of the reader, whatever follows."""
        data = bytearray(packed([1]))
        data[4] = _frames.VERSION + 1
        with pytest.raises(SerializationError, match="upgrade") as caught:
            decode(data)
        assert caught.value.reason == "version"
        assert reason_of(data[:5]) == "version"


class TestForgedHeaders:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (forged({}), "corrupt"),
            (forged([]), "corrupt"),
            (forged(b""), "corrupt"),
            (forged(b"\xc1"), "corrupt"),
            (forged({"codec": 1, "inband": 0, "crc": 0}), "corrupt"),
            (forged({"codec": "str", "inband": -1, "crc": 0}), "corrupt"),
            (forged({"codec": "str", "inband": True, "crc": 0}), "corrupt"),
            (forged({"codec": "str", "inband": 0.0, "crc": 0}), "corrupt"),
            (forged({"codec": "str", "inband": 0, "crc": 0, "bodies": b"abc"}), "corrupt"),
            (forged({"codec": "str", "inband": 0, "crc": 0, "bodies": [1]}), "corrupt"),
            (forged({"codec": "str", "inband": 2**63, "crc": 0}), "truncated"),
            (forged({"codec": "str", "inband": 0, "crc": 0, "bodies": b"\xff" * 80}), "truncated"),
            (forged({"codec": "str", "inband": 0, "crc": 7}), "corrupt"),
            (forged({"codec": "str", "inband": 0, "crc": 0, "checksum": "crc32"}), "corrupt"),
            (forged({"codec": "str", "inband": 0, "crc": 0, "checksum": "blake9"}), "version"),
            (forged({"codec": "nope", "inband": 0, "crc": 0}), "codec"),
            (forged({"codec": "", "inband": 0, "crc": 0}), "codec"),
            (forged({"codec": "pickle", "inband": 0, "crc": 0}), "decode"),
            (forged({"codec": "str", "inband": 0, "crc": 0}, version=0), "corrupt"),
            (forged({"codec": "str", "inband": 0, "crc": 0}, flags=1), "version"),
            (forged({"codec": "str", "inband": 0, "crc": 0}, reserved=1), "version"),
            (forged(b"\x81\xc4\x01a" + b"\x91" * 100_000), "corrupt"),
            (forged(b"\xdd\xff\xff\xff\xff" * 1000), "corrupt"),
            (forged(b"\xdf\xff\xff\xff\xff" * 1000), "corrupt"),
            (forged(b"\xc6\xff\xff\xff\xff"), "corrupt"),
            (forged(b"\xd6\xff\xff\xff\xff\xff"), "corrupt"),
        ],
    )
    def test_lies(self, data, reason):
        """A header that lies, with an intact checksum, is refused."""
        assert reason_of(data) == reason
        assert needs_worker(data) is False

    def test_bombs_allocate_nothing(self):
        """Containers that claim millions of elements are refused before they are made."""
        import tracemalloc

        nested = (b"\xdd" + (60_000).to_bytes(4, "big")) * 500 + bytes(70_000)
        data = forged(nested)
        tracemalloc.start()
        try:
            assert reason_of(data) == "corrupt"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5_000_000

    @given(st.dictionaries(st.text(), st.integers() | st.binary() | st.none(), max_size=8))
    def test_any_header(self, extra):
        """No header at all leads to another exception."""
        extra = {k: v for k, v in extra.items() if not isinstance(v, int) or abs(v) < 2**63}
        fields = {"codec": "pickle", "inband": 0, "crc": 0, **extra}
        assert reason_of(forged(fields))

    @given(st.binary(max_size=100))
    def test_any_pickle(self, inband):
        """Bytes that are no pickle never lead to another exception."""
        fields = {"codec": "pickle", "inband": len(inband), "crc": zlib.crc32(inband)}
        try:
            decode(forged(fields, tail=inband))
        except SerializationError as exc:
            assert exc.reason == "decode"

    def test_unknown_keys_are_ignored(self):
        """A key of a later writer does not disturb."""
        fields = {"codec": "bytes", "inband": 2, "crc": zlib.crc32(b"ab"), "later": [1]}
        assert decode(forged(fields, tail=b"ab")) == b"ab"

    def test_both_parts_of_a_plain_codec(self):
        """Bytes in-band and in a body at once are no object."""
        fields = {"codec": "bytes", "inband": 2, "crc": zlib.crc32(b"ab"), "bodies": bytes(8)}
        data = forged(fields, tail=b"ab")
        assert reason_of(data + bytes(-len(data) % 64)) == "decode"

    def test_body_that_is_no_text(self):
        """A body that is no UTF-8 is a typed error."""
        assert reason_of(packed("x" * 600)[:-1] + b"\xff") == "decode"


class TestDecodeFailures:
    def test_cause_is_chained(self):
        """An object that raises on load is reason decode, with its exception as the cause."""
        with pytest.raises(SerializationError, match="on load") as caught:
            through(Explodes())
        assert caught.value.reason == "decode"
        assert isinstance(caught.value.__cause__, LookupError)

    def test_exit_in_a_pickle(self):
        """A pickle that exits does not end the process."""
        assert reason_of(packed(Exits())) == "decode"

    @pytest.mark.parametrize("name", ["Thing", "work"])
    def test_main_script(self, tmp_path, name):
        """A class of the writer's main script: the hint says to move it or to use cloudpickle."""
        script = tmp_path / "script.py"
        script.write_text(
            "import sys\n"
            "from proxyplane.serialization import encode, get_serializer\n"
            "class Thing: pass\n"
            "def work(): return 1\n"
            "chosen = get_serializer(sys.argv[2]) if len(sys.argv) > 2 else None\n"
            "frames = encode(globals()[sys.argv[1]], serializer=chosen)\n"
            "sys.stdout.buffer.write(b''.join(frames))\n"
        )
        run = [sys.executable, str(script), name]
        data = subprocess.run(run, capture_output=True, check=True, timeout=60).stdout
        with pytest.raises(SerializationError, match="main script.*cloudpickle") as caught:
            decode(data)
        assert caught.value.reason == "decode"
        assert isinstance(caught.value.__cause__, AttributeError)
        run.append("cloudpickle")
        data = subprocess.run(run, capture_output=True, check=True, timeout=60).stdout
        assert decode(data).__name__ == name

    def test_missing_module(self):
        """A module that is not there is named in the hint."""
        inband = b"cnosuchmodule_x\nThing\n."
        fields = {"codec": "pickle", "inband": len(inband), "crc": zlib.crc32(inband)}
        with pytest.raises(SerializationError, match="nosuchmodule_x") as caught:
            decode(forged(fields, tail=inband))
        assert caught.value.hint is not None
        assert "nosuchmodule_x" in caught.value.hint

    def test_error_survives_pickle(self):
        """The error itself can travel between processes."""
        with pytest.raises(SerializationError) as caught:
            decode(b"")
        back = pickle.loads(pickle.dumps(caught.value))
        assert (back.reason, str(back)) == (caught.value.reason, str(caught.value))
