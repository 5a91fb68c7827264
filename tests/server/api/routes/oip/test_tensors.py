from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.routes.oip.tensors import (
    parse_bytes_tensor,
    parse_float_tensor,
    parse_uint8_tensor,
    split_bytes_elements,
)
from server.errors import BadRequest


def serialize(elements: list[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


class TestBytes:
    @given(st.lists(st.binary(max_size=300)))
    def test_elements_come_back(self, elements):
        assert split_bytes_elements(memoryview(serialize(elements))) == elements

    @given(st.binary(max_size=60))
    def test_any_data_is_elements_or_refused(self, data):
        try:
            elements = split_bytes_elements(memoryview(data))
        except BadRequest:
            return
        assert serialize(elements) == data

    @given(st.lists(st.binary(max_size=30)))
    def test_json_and_binary_data_give_the_same(self, elements):
        shape = (len(elements),)
        texts = [base64.b64encode(element).decode() for element in elements]
        data = memoryview(serialize(elements))
        assert parse_bytes_tensor(shape, texts) == parse_bytes_tensor(shape, data) == elements

    def test_another_number_of_elements_than_the_shape_says_is_refused(self):
        with pytest.raises(BadRequest, match="3 elements, but there are 2"):
            parse_bytes_tensor((3,), ["", ""])


class TestFloats:
    def test_json_and_binary_data_give_the_same(self):
        values = np.array([[0.5, -1.0], [3.25, 0.0]], np.float32)
        nested = parse_float_tensor((2, 2), values.tolist())
        flat = parse_float_tensor((2, 2), values.ravel().tolist())
        binary = parse_float_tensor((2, 2), memoryview(values.astype("<f4").tobytes()))
        for parsed in (nested, flat, binary):
            assert parsed.dtype == np.float32
            np.testing.assert_array_equal(parsed, values)

    def test_integers_are_numbers(self):
        assert parse_float_tensor((2,), [1, 2]).tolist() == [1.0, 2.0]

    @pytest.mark.parametrize("value", [1e39, float("nan"), float("inf")])
    def test_values_must_be_finite_in_float32(self, value):
        with pytest.raises(BadRequest, match="too large for FP32"):
            parse_float_tensor((1,), [value])

    @pytest.mark.parametrize("data", [None, {}, "1", [None], ["1"], [[1], [2, 3]], [True]])
    def test_other_json_is_refused(self, data):
        with pytest.raises(BadRequest, match="list of numbers"):
            parse_float_tensor((1,), data)


class TestBytesAsNumbers:
    @given(st.lists(st.integers(0, 255), min_size=6, max_size=6))
    def test_json_and_binary_data_give_the_same(self, numbers):
        values = np.array(numbers, np.uint8).reshape(2, 3)
        binary = parse_uint8_tensor((2, 3), memoryview(values.tobytes()))
        nested = parse_uint8_tensor((2, 3), values.tolist())
        flat = parse_uint8_tensor((2, 3), [float(number) for number in numbers])
        for parsed in (binary, nested, flat):
            assert parsed.dtype == np.uint8
            np.testing.assert_array_equal(parsed, values)

    def test_binary_data_is_not_copied(self):
        body = bytearray(range(10))
        parsed = parse_uint8_tensor((2, 3), memoryview(body)[4:])
        assert parsed.tolist() == [[4, 5, 6], [7, 8, 9]]
        assert np.shares_memory(parsed, np.frombuffer(body, np.uint8))

    @given(st.one_of(st.integers(), st.floats()))
    def test_other_numbers_in_json_are_refused(self, number):
        if number in range(256):
            assert parse_uint8_tensor((1,), [number]).tolist() == [number]
        else:
            with pytest.raises(BadRequest, match=r"from 0 to 255|list of numbers"):
                parse_uint8_tensor((1,), [number])

    @pytest.mark.parametrize("data", [None, {}, "1", [None], ["1"], [[1], [2, 3]], [True]])
    def test_other_json_is_refused(self, data):
        with pytest.raises(BadRequest, match="list of numbers"):
            parse_uint8_tensor((1,), data)

    def test_another_size_than_the_shape_says_is_refused(self):
        with pytest.raises(BadRequest, match=r"\[2, 3\] has 6 bytes of data, not 5"):
            parse_uint8_tensor((2, 3), memoryview(bytes(5)))
        with pytest.raises(BadRequest, match=r"\[2, 3\] has 6 numbers, but data has 5"):
            parse_uint8_tensor((2, 3), [0] * 5)
