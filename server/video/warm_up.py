"""A tiny video that a decode worker decodes before its first task: what is imported late, is then.

Two grey frames of 16 x 16 pixels: VP8 in WebM, as FFmpeg writes it with ``-fflags +bitexact``.
"""

from __future__ import annotations

import base64

from server.media.transforms import VideoTransform

TRANSFORM = VideoTransform(frames=2, tubelet=2, height=16, width=16, resize=16, crops=3)
BODY = base64.b64decode(
    "GkXfo59ChoEBQveBAULygQRC84EIQoKEd2VibUKHgQJChYECGFOAZwEAAAAAAAGZEU2bdLpNu4tTq4QVSalmU6yBoU27"
    "i1OrhBZUrmtTrIHGTbuMU6uEElTDZ1OsggEJTbuMU6uEHFO7a1OsggGD7AEAAAAAAABZAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAVSalmoCrXsYMPQkBNgIRMYXZmV0GETGF2ZkSJiEBUAAAAAAAAFlSua76uAQAAAAAAADXXgQFzxYgAAAAAAAAAAZyB"
    "ACK1nIN1bmSIgQCGhVZfVlA4g4EBI+ODhAJiWgDghrCBELqBEBJUw2e1c3OyY8CLY8WIAAAAAAAAAAFnyKFFo4hEVVJB"
    "VElPTkSHkzAwOjAwOjAwLjA4MDAwMDAwMAAfQ7Z1u+eBAKOfgQAAgBACAJ0BKhAAEAAARwiFhYiFhIgCAgAGGWgAAKOV"
    "gQAoALEBAAUQrAAYABhYL/QACAAAHFO7a5G7j7OBALeK94EB8YIBQ/CBAw=="
)
