"""The tables, reports and progress displays that verbs print."""
