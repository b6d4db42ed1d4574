"""Checks that ship with the library, so that families outside it can use them too."""
