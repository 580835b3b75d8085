"""Pickles that write a file when anybody loads them, and objects that carry them everywhere."""

from __future__ import annotations

import pickle
import zlib

from support.encoding import forged


def opcodes(path, protocol=5):
    """A pickle whose opcodes write a file."""

    class Writes:
        def __reduce__(self):
            return exec, (f"open({str(path)!r}, 'w').close()",)

    return pickle.dumps([1, Writes()], protocol=protocol)


def frames(path):
    """Whole objects, with intact checksums, in which such a pickle stands in every place."""
    data = opcodes(path)
    crc = zlib.crc32(data)
    inband = {"inband": len(data), "crc": crc}
    body = {"bodies": len(data).to_bytes(8, "little")}
    found = [data, opcodes(path, 0), b"\xc1PXP" + data]
    for version, flags in ((1, 0), (2, 0), (2, 1)):
        # A signed one has its signature, which is any bytes here, before the header.
        signature = data[:40].ljust(40, b".") if flags else b""
        for codec in (
            "pickle",
            "cloudpickle",
            "bytes",
            "str",
            "numpy",
            "arrow",
            "proxyplane.failures:FAILURES",
            "proxyplane.failures:TOLD",
            "pickle:loads",
            "support.evil_module:codec",
        ):
            plain = forged({"codec": codec, **inband}, tail=data, version=version, flags=flags)
            found.append(plain[:16] + signature + plain[16:])
            outside = {"codec": codec, "inband": 0, "crc": 0, **body}
            head = forged(outside, version=version, flags=flags)
            head = head[:16] + signature + head[16:]
            found.append(head + bytes(-len(head) % 64) + data)
    # In the header itself, and in the place of a name in it.
    found.append(forged(data, version=2))
    found.append(forged({"codec": data.decode("latin-1"), **inband}, tail=data, version=2))
    found.append(forged({"codec": "bytes", **inband, "more": data}, tail=data, version=2))
    return found
