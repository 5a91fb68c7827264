"""Image files that a server must survive; `tests.hostile.files.FILES` holds all of them."""
