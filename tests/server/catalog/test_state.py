"""What a reload sees of a model's files."""

from __future__ import annotations

from pathlib import Path

from server.catalog.entries import ModelSpec
from server.catalog.state import files_state


def test_each_change_of_a_file_shows(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    config = folder / "config.json"
    weights = tmp_path / "weights.safetensors"
    specs = [
        ModelSpec(name="a", timm="vit_a", checkpoint=weights),
        ModelSpec(name="b", timm=f"local-dir:{folder}"),
        ModelSpec(name="c", timm="vit_c"),
    ]
    seen = []

    def look() -> None:
        state = files_state(specs)
        assert files_state(specs) == state
        seen.append(state)

    look()
    weights.write_text("1")
    look()
    weights.write_text("23")
    look()
    weights.unlink()
    weights.symlink_to(config)
    config.write_text("{}")
    look()
    config.rename(folder / "other.json")
    look()
    assert len(set(seen)) == len(seen)
