"""What a reader accepts: signatures and codecs, checked before anything is decoded."""

from __future__ import annotations

import os
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyplane import FileConnector, Store, _frames
from proxyplane._trust import Trust
from proxyplane.exceptions import ConfigError, SerializationError, UntrustedDataError
from proxyplane.serialization import TOO_LONG, decode, encode, get_serializer, needs_worker
from support import evil
from support.encoding import forged, packed

SECRET = "correct horse battery staple"
OLD = "the secret of last year, retired"


@pytest.fixture(autouse=True, scope="module")
def _secrets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGNING", SECRET)
        patch.setenv("SIGNING_OLD", OLD)
        yield


SIGNS = Trust(["env:SIGNING"])
OLD_SIGNS = Trust(["env:SIGNING_OLD"])
SAFE = frozenset({"numpy", "arrow", "bytes", "bytearray", "str"})

SAMPLES = {
    "text": "héllo",
    "bytes": b"*" * 600,
    "array": np.arange(100.0),
    "arrays": [np.arange(100), np.arange(70.0), "x" * 700],
}


def signed(obj, key="key", trust=SIGNS):
    return b"".join(trust.sign(encode(obj, trust=trust), key))


def refusal(data, key="key", trust=SIGNS):
    """The reason for which `trust` refuses `data`."""
    with pytest.raises(UntrustedDataError) as caught:
        decode(bytearray(data), trust=trust, key=key)
    return caught.value.reason


class TestSignature:
    @pytest.mark.parametrize("name", SAMPLES)
    def test_round_trip(self, name):
        """What is signed for a key is read under that key."""
        found = decode(bytearray(signed(SAMPLES[name])), trust=SIGNS, key="key")
        assert repr(SAMPLES[name]) == repr(found)

    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_byte_flipped(self, name):
        """A change of any byte, of the padding too, is caught; nothing is decoded."""
        data = signed(SAMPLES[name])
        for at in range(len(data)):
            for mask in (0x01, 0x80):
                damaged = bytearray(data)
                damaged[at] ^= mask
                with pytest.raises(SerializationError) as caught:
                    decode(damaged, trust=SIGNS, key="key")
                if at >= 5:  # before it are magic and version
                    assert isinstance(caught.value, UntrustedDataError)

    def test_every_cut_and_extension(self):
        """What is cut off, or longer, is refused."""
        data = signed(SAMPLES["arrays"])
        for length in range(len(data)):
            with pytest.raises(SerializationError):
                decode(bytearray(data[:length]), trust=SIGNS, key="key")
        assert "signature" == refusal(data + b"\0")

    @given(st.text(), st.text())
    def test_key_is_bound(self, one, other):
        """An object that was put under another key is refused."""
        data = signed([1], one)
        assert [1] == decode(bytearray(data), trust=SIGNS, key=one)
        if one != other:
            assert "signature" == refusal(data, other)

    def test_key_does_not_run_into_the_object(self):
        """The end of a key cannot be taken for the beginning of the object."""
        data = signed(b"x", "key")
        assert "signature" == refusal(data, "key" + "\xc1"[:0] + data[:1].decode("latin-1"))
        assert "signature" == refusal(data, "ke")

    def test_unsigned_is_refused(self):
        """What has no signature is refused, of this version and of the one before."""
        assert "unsigned" == refusal(packed([1]))
        assert "unsigned" == refusal(forged({"codec": "str", "inband": 0, "crc": 0}, version=1))

    def test_flag_removed(self):
        """To take the flag and the signature off makes an unsigned object, which is refused."""
        data = bytearray(signed([1]))
        del data[_frames.PREAMBLE.size : _frames.PREAMBLE.size + _frames.SIGNATURE]
        data[5] = 0
        data[12:16] = zlib.crc32(data[16:], zlib.crc32(data[:12])).to_bytes(4, "little")
        assert "unsigned" == refusal(data)

    def test_reader_without_a_key(self):
        """A reader who names no key, or does not have it, is told so; it never just reads on."""
        assert "key" == refusal(signed([1]), trust=Trust())
        with pytest.raises(UntrustedDataError, match="NO_SUCH_VARIABLE is not set") as caught:
            decode(signed([1]), trust=Trust(["env:NO_SUCH_VARIABLE"]), key="key")
        assert ("key", True) == (caught.value.reason, "export NO_SUCH" in str(caught.value.hint))
        assert "key" == refusal(signed([1]), key=None)

    def test_unknown_key(self):
        """A signature by a key that the reader has not is told apart from a wrong one."""
        assert "key" == refusal(signed([1], trust=OLD_SIGNS))
        lie = bytearray(signed([1], trust=OLD_SIGNS))
        lie[16:24] = SIGNS.key_id()
        assert "signature" == refusal(lie)

    def test_rotation(self):
        """The first key signs, and what the others signed is read."""
        both = Trust(["env:SIGNING", "env:SIGNING_OLD"])
        for trust in (SIGNS, OLD_SIGNS, both):
            assert [1] == decode(bytearray(signed([1], trust=trust)), trust=both, key="key")
        assert [1] == decode(bytearray(signed([1], trust=both)), trust=SIGNS, key="key")
        assert "key" == refusal(signed([1], trust=both), trust=OLD_SIGNS)

    def test_short_secret(self, monkeypatch):
        """A secret that could be guessed is refused, and not shown."""
        monkeypatch.setenv("SHORT", "sesame")
        with pytest.raises(ConfigError, match="fewer than 16 bytes") as caught:
            Trust(["env:SHORT"]).key_id()
        assert "sesame" not in str(caught.value)

    def test_needs_worker(self):
        """A large signed object is checked on a worker thread, an unsigned one of bytes is not."""
        large = bytes(900_000)
        assert needs_worker(signed(large)) and not needs_worker(packed(large))
        assert not needs_worker(signed(b"x"))
        assert decode(signed(large), trust=SIGNS, key="key", brief=True) is TOO_LONG
        assert b"x" == decode(signed(b"x"), trust=SIGNS, key="key", brief=True)

    def test_shared_memory_is_copied_first(self, tmp_path):
        """Who changes a mapped file after the check changes nothing in what is decoded."""
        from proxyplane.connectors.file.read import read

        path = tmp_path / "object"
        path.write_bytes(signed(np.zeros(100_000, "u1")))
        view = memoryview(read(str(path)))
        checked = SIGNS.check(view, "key")
        with open(path, "r+b") as file:
            file.seek(5000)
            file.write(b"\xff" * 4096 * 4)
        assert b"\xff" in bytes(view)  # the reader's private map shows what others write
        assert b"\xff" not in bytes(checked[1000:])
        assert not decode(checked, trust=SIGNS, key="key").any()

    async def test_tables_are_copied_before_they_are_validated(self, tmp_path):
        """Without a signature too, nobody can change the offsets in a mapped file afterwards."""
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"text": [f"x{i:020}" for i in range(100_000)]})
        async with Store("tables", FileConnector(tmp_path), allow=["arrow"]) as store:
            key = await store.put(table)
            found = await store.get(key)
            with open(tmp_path / key, "r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * (1 << 20))
            found.validate(full=True)
            assert found.equals(table)

    def test_large_tables_are_not_validated_on_a_loop(self):
        """To look at all of a table takes its time."""
        pa = pytest.importorskip("pyarrow")
        for size, stalls in ((1000, False), (1 << 20, True)):
            table = pa.table({"text": ["x" * 100] * (size // 50)})
            data = bytearray(b"".join(encode(table, serializer=get_serializer("arrow"))))
            assert needs_worker(data) is stalls

    def test_private_memory_is_not_copied(self):
        """The buffer of a connection is checked in place."""
        data = bytearray(signed(bytes(1000)))
        assert SIGNS.check(memoryview(data), "key").obj is data

    def test_error_survives_pickle(self):
        """The error can travel, with its reason."""
        with pytest.raises(UntrustedDataError) as caught:
            decode(packed([1]), trust=SIGNS, key="key")
        back = pickle.loads(pickle.dumps(caught.value))
        assert (type(back), back.reason) == (UntrustedDataError, "unsigned")


class TestAllow:
    def test_disallowed_codec(self):
        """A codec that is not accepted is refused before it is looked for."""
        trust = Trust(allow=SAFE)
        for codec in ("pickle", "cloudpickle", "nope", "no.such.module:thing"):
            data = forged({"codec": codec, "inband": 0, "crc": 0})
            assert "disallowed" == refusal(data, trust=trust)

    @pytest.mark.parametrize("obj", [b"x", bytearray(b"y" * 900), "z", np.arange(1000)])
    def test_natural_codecs(self, obj):
        """A writer that accepts no pickle encodes bytes, text and arrays without."""
        trust = Trust(allow=SAFE)
        data = bytearray(b"".join(encode(obj, trust=trust)))
        assert b"pickle" not in data[:200]
        assert repr(obj) == repr(decode(data, trust=trust))

    @pytest.mark.parametrize("obj", [{"a": 1}, None, np.array([{}]), lambda: 0])
    def test_writer_refuses_what_needs_pickle(self, obj):
        """What could only be pickled is refused when it is written, with what can be done."""
        with pytest.raises(SerializationError) as caught:
            encode(obj, trust=Trust(allow=SAFE))
        assert "encode" == caught.value.reason
        with pytest.raises(SerializationError, match="accepts only"):
            encode(obj, serializer=get_serializer("pickle"), trust=Trust(allow=SAFE))

    def test_pickle_alone(self):
        """With pickle accepted, and cloudpickle not, lambdas are refused and lists are not."""
        trust = Trust(allow={"pickle"})
        assert [1] == decode(b"".join(encode([1], trust=trust)), trust=trust)
        with pytest.raises(SerializationError):
            encode(lambda: 0, trust=trust)


@pytest.mark.row("hostile pickle")
class TestEvil:
    """Nothing that anybody writes makes a reader write a file."""

    @pytest.fixture(autouse=True)
    def _trace(self, tmp_path, monkeypatch):
        self.path = tmp_path / "evil"
        monkeypatch.setenv("EVIL_TRACE", str(self.path))
        yield
        assert not self.path.exists()

    @pytest.mark.undefended
    def test_the_pickles_are_live(self):
        """Without a defence each kind of them writes its file: the other tests can fail."""
        self.path.unlink(missing_ok=True)
        decode(next(one for one in evil.frames(self.path) if b"pickle" in one[:60]))
        assert self.path.exists()
        self.path.unlink()
        with pytest.raises(SerializationError):
            decode(forged({"codec": "support.evil_module:codec", "inband": 0, "crc": 0}))
        assert self.path.exists()
        self.path.unlink()

    @pytest.mark.parametrize(
        "trust", [SIGNS, Trust(allow=SAFE), Trust(["env:SIGNING"], SAFE)], ids=repr
    )
    def test_in_every_place(self, trust):
        """Signing, or accepting no pickle, refuses each with a typed error."""
        for data in evil.frames(self.path):
            needs_worker(data)
            try:
                decode(bytearray(data), trust=trust, key="key")
            except SerializationError:
                continue
            # Harmless bytes, as what they say they are.
            assert trust.signs is False and b"bytes" in data[:60]

    @settings(max_examples=200)
    @given(st.data())
    def test_spliced_into_a_signed_object(self, data):
        """Wherever such a pickle is written into a signed object, it is refused."""
        good = signed(data.draw(st.sampled_from(sorted(SAMPLES.values(), key=repr))))
        bad = evil.opcodes(self.path)
        at = data.draw(st.integers(0, len(good)))
        over = data.draw(st.sampled_from((0, len(bad))))
        with pytest.raises(SerializationError):
            decode(bytearray(good[:at] + bad + good[at + over :]), trust=SIGNS, key="key")

    @settings(max_examples=200)
    @given(st.data())
    def test_header_of_choice(self, data):
        """No header with an intact checksum leads an accepted codec to a pickle."""
        bad = evil.opcodes(self.path)
        codec = data.draw(
            st.sampled_from([*sorted(SAFE), "pickle", "", "proxyplane.failures:TOLD"])
        )
        extra = data.draw(st.dictionaries(st.text(max_size=8), st.binary(max_size=20), max_size=4))
        fields = {**extra, "codec": codec, "inband": len(bad), "crc": zlib.crc32(bad)}
        trust = Trust(allow=SAFE)
        try:
            found = decode(forged(fields, tail=bad, version=2), trust=trust)
        except SerializationError:
            return
        assert codec in ("bytes", "bytearray") and bytes(found) == bad


class TestVersions:
    """Objects of this version and of the one before, as they were written once."""

    ONE = (
        "c150585001000000450000 00a43a358c86a5636f646563a56279746573a6696e62616e6400a363726300"
        "a6626f64696573c4085802000000000000a8636865636b73756da56372633332a473756d73c4049274e3c5"
    )
    TWO = (
        "c1505850020000001c000000d89a3e8b83a5636f646563a3737472a6696e62616e6406a3637263ce9e3b82"
        "3668c3a96c6c6f"
    )

    def test_version_1(self):
        """An object of version 1 is read."""
        head = bytes.fromhex(self.ONE.replace(" ", ""))
        assert b"*" * 600 == decode(head + bytes(-len(head) % 64) + b"*" * 600)
        with pytest.raises(SerializationError, match="body 0"):
            decode(head + bytes(-len(head) % 64) + b"*" * 599 + b"+")

    def test_version_1_has_no_flags(self):
        """The flag of a signature means nothing in version 1, and is refused."""
        data = forged({"codec": "str", "inband": 0, "crc": 0}, version=1, flags=1)
        with pytest.raises(SerializationError) as caught:
            decode(data)
        assert "version" == caught.value.reason

    def test_version_2(self):
        """An object of version 2 is read."""
        assert "héllo" == decode(bytes.fromhex(self.TWO))

    def test_version_2_signed(self, monkeypatch):
        """An object that was signed once is read with its secret."""
        monkeypatch.setenv("VECTOR", "0123456789abcdef")
        trust = Trust(["env:VECTOR"])
        written = signed("héllo", "the key", trust)
        assert SIGNED_VECTOR == written.hex()
        assert "héllo" == decode(bytes.fromhex(SIGNED_VECTOR), trust=trust, key="the key")


SIGNED_VECTOR = (
    "c1505850020100001c000000108da04436e1578fb9a7ed1758e1223af9e5a67fb5447a1490d2af38615601a708"
    "ee9e61af5d572e4bcf6b7783a5636f646563a3737472a6696e62616e6406a3637263ce9e3b823668c3a96c6c6f"
)


class TestChecksums:
    @pytest.mark.parametrize("kind", ["crc32", "xxh3"])
    def test_every_byte_of_a_body(self, kind):
        """Each kind catches any change of a body."""
        data = packed(b"*" * 600, checksum=kind)
        assert b"*" * 600 == decode(data)
        for at in range(len(data) - 600, len(data)):
            damaged = bytearray(data)
            damaged[at] ^= 0x04
            with pytest.raises(SerializationError, match="body 0"):
                decode(damaged)

    def test_true_is_the_one_of_the_standard_library(self):
        """True is crc32, which every reader has."""
        assert packed(b"*" * 600, checksum=True) == packed(b"*" * 600, checksum="crc32")

    def test_reader_without_the_package(self, monkeypatch):
        """A reader that lacks xxhash is told what to install."""
        data = packed(b"*" * 600, checksum="xxh3")
        monkeypatch.setitem(__import__("sys").modules, "xxhash", None)
        with pytest.raises(SerializationError, match=r"proxyplane\[checksum\]") as caught:
            decode(data)
        assert "version" == caught.value.reason
        with pytest.raises(SerializationError, match=r"proxyplane\[checksum\]"):
            encode(b"*" * 600, checksum="xxh3")

    def test_signature_takes_their_place(self):
        """A signed object has no checksums of its bodies: one pass is enough."""
        frames = encode(b"*" * 600, checksum="xxh3", trust=SIGNS)
        header = _frames.read_header(memoryview(b"".join(frames)))
        assert header.sums is None


def test_environment_is_read_once():
    """The keys stay those that were found first, whatever the environment becomes."""
    os.environ["CHANGING"] = SECRET
    try:
        trust = Trust(["env:CHANGING"])
        first = trust.key_id()
        os.environ["CHANGING"] = OLD
        assert first == trust.key_id()
    finally:
        del os.environ["CHANGING"]
