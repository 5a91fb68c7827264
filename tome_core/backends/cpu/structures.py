"""The structures that the kernels read, field by field as kernels.h declares them."""

from __future__ import annotations

from ctypes import Structure, c_bool, c_float, c_int32, c_int64, c_void_p


class BlockWeights(Structure):
    """The weights of one block, in the order in which they are used."""

    _fields_ = (
        ("norm1_weight", c_void_p),
        ("norm1_bias", c_void_p),
        ("norm1_eps", c_float),
        ("qkv_weight", c_void_p),
        ("qkv_bias", c_void_p),
        ("proj_weight", c_void_p),
        ("proj_bias", c_void_p),
        ("norm2_weight", c_void_p),
        ("norm2_bias", c_void_p),
        ("norm2_eps", c_float),
        ("fc1_weight", c_void_p),
        ("fc1_bias", c_void_p),
        ("fc2_weight", c_void_p),
        ("fc2_bias", c_void_p),
    )


class EncodeArguments(Structure):
    """What ``tome_encode`` works on."""

    _fields_ = (
        ("blocks", c_void_p),
        ("depth", c_int64),
        ("images", c_int64),
        ("dim", c_int64),
        ("heads", c_int64),
        ("hidden", c_int64),
        ("prefix", c_int64),
        ("leading", c_int64),
        ("proportional", c_bool),
        ("rule", c_int32),
        ("offsets", c_void_p),
        ("tokens", c_void_p),
        ("other_tokens", c_void_p),
        ("wide", c_void_p),
        ("sizes", c_void_p),
        ("other_sizes", c_void_p),
        ("bias", c_void_p),
        ("dest", c_void_p),
        ("dest_stride", c_int64),
        ("merged", c_void_p),
    )
