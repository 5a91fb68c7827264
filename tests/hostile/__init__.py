"""Files that a server must survive: images in `tests.hostile.files`, sounds in `.sounds`."""
