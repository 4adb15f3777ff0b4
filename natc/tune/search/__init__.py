"""Proposes candidates and keeps the best. Needs the compiler."""
