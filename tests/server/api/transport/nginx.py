"""A real nginx in front of a server, configured as its documentation begins: a plain proxy_pass."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.server.conftest import eventually, free_port

_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_max_body_size 50m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""


def nginx() -> str | None:
    """Its program; Debian puts it where not every user's PATH leads."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def run_nginx(upstream: str, folder: Path) -> Iterator[str]:
    """nginx in front of ``upstream``, at the URL that this gives."""
    program = nginx()
    assert program is not None
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, upstream=upstream))
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
    )
    try:
        eventually(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
