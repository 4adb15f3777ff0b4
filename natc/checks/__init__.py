"""Checks whether a kernel is right. Verdicts raise; nothing here depends on `assert`."""
