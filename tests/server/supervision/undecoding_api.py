"""An API process whose decode workers cannot start; tests run it in place of `server.api`."""

from server.api.__main__ import run_process
from server.decoding.pool import DECODERS
from server.media.modality import Modality

if __name__ == "__main__":
    DECODERS[Modality.AUDIO] = "tests.server.supervision.undecoding_api:nothing"
    run_process()
