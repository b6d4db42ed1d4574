"""Tokenizers of models that read pages, which mend what was read."""

import functools
import multiprocessing

from phyla.errors import ArgumentError

from .fast_kinds import TableFast
from .page_repair import mended, with_corrected_tables, without_made_up_references


class FastPages(TableFast):
    """Nougat on Rust; it has no other form."""

    def post_process_generation(
        self, generation: str | list[str], fix_markdown: bool = True, num_workers: int | None = None
    ) -> str | list[str]:
        """A generated page mended, or a list of pages (on `num_workers` processes where given)."""
        if isinstance(generation, str):
            return mended(generation, fix_markdown)
        if num_workers is None:
            return [mended(page, fix_markdown) for page in generation]
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
            raise ArgumentError(f"num_workers must be a whole number from 1 on, but is {num_workers!r}")
        with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
            return pool.map(functools.partial(mended, fix_markdown=fix_markdown), generation)

    def post_process_single(self, generation: str, fix_markdown: bool = True) -> str:
        """One generated page mended."""
        return mended(generation, fix_markdown)

    def correct_tables(self, generation: str) -> str:
        """Tables with their begin and end on lines of their own, and without those that cannot be tables."""
        return with_corrected_tables(generation)

    def remove_hallucinated_references(self, text: str) -> str:
        """The text with a mark in place of long runs of references that are almost the same."""
        return without_made_up_references(text)
