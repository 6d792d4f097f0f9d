"""`python -m tests.docs`: write the pages of docs/ that are made from the source."""

from tests.docs import PAGES

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), "utf-8")
