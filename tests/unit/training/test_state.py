from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.training.network import NetworkState


def state():
    vector = np.linspace(-1, 1, 11, dtype=np.float32)
    return NetworkState(vector, {"bn.mean": np.arange(4.0, dtype=np.float32), "bn.n": np.array(3)})


@settings(deadline=None)
@given(st.integers(0, 11 * 32 - 1))
def test_hash_changes_with_any_bit_of_the_vector(bit):
    other = state()
    other.vector.view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
    assert other.sha256() != state().sha256()


@settings(deadline=None)
@given(st.integers(0, 4 * 32 - 1))
def test_hash_changes_with_any_bit_of_a_buffer(bit):
    other = state()
    other.buffers["bn.mean"].view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
    assert other.sha256() != state().sha256()


def test_hash_changes_with_a_scalar_buffer():
    other = state()
    other.buffers["bn.n"][...] = 4
    assert other.sha256() != state().sha256()


def test_hash_changes_with_a_buffers_name():
    one = state()
    two = NetworkState(one.vector, {"bn.mean": one.buffers["bn.mean"], "bn.m": one.buffers["bn.n"]})
    assert one.sha256() != two.sha256()


def test_hash_does_not_depend_on_the_order_of_buffers():
    one = state()
    assert NetworkState(one.vector, dict(reversed(one.buffers.items()))).sha256() == one.sha256()


def test_equal_content_has_an_equal_hash_whatever_its_memory():
    one, two = state(), state()
    spread = np.zeros(22, np.float32)
    spread[::2] = two.vector
    spread.flags.writeable = False
    assert NetworkState(spread[::2], two.buffers).sha256() == one.sha256()


def test_hash_is_pinned():
    """SHA-256 of four little-endian floats and one named buffer: anyone can recompute it."""
    vector = np.array([0, 1, -2, 0.5], np.float32)
    expected = hashlib.sha256(bytes.fromhex("000000000000803f000000c00000003f") + b"n" + b"\x07")
    assert NetworkState(vector, {"n": np.array([7], np.uint8)}).sha256() == expected.hexdigest()
