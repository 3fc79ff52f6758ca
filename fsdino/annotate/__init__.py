"""Masks where people annotate: Label Studio, CVAT, FiftyOne and supervision, each file for one of them."""
