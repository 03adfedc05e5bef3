"""Fixtures and generators that several kinds of tests share."""
