"""Arrays inside JSON: how pydantic writes and reads fields that are NumPy arrays of one axis."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class ArrayText:
    """Annotation of an array field: base64 of the numbers, bit for bit."""

    def __init__(self, dtype: str) -> None:
        """dtype: NumPy's name with its byte order, such as `<i4`."""
        self._dtype = np.dtype(dtype)

    def encode(self, array: np.ndarray) -> str:
        """The numbers of `array` as text."""
        return base64.b64encode(array.astype(self._dtype).tobytes()).decode()

    def decode(self, text: Any) -> np.ndarray:
        """Undo `encode`; an array passes as it is.

        Raises:
            ValueError: neither, or a number is cut off.
        """
        if isinstance(text, np.ndarray):
            return text
        if not isinstance(text, str):
            raise ValueError(f"an array is {type(text).__name__}, it must be base64 text")
        found = np.frombuffer(base64.b64decode(text, validate=True), self._dtype)
        return found.astype(self._dtype.newbyteorder("="))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            self.decode, serialization=core_schema.plain_serializer_function_ser_schema(self.encode)
        )
