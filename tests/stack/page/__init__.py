"""A package, so that what its tests share ends with the last of them: Playwright bears no other event loop beside."""
