"""The tutorial: one script that is read as a page (`tutorial.md`), as a notebook and by the tests."""
