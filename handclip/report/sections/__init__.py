"""The sections of the report page: from what runs have written to figures, tables and sentences."""
