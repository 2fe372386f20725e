"""Tables made from what runs have measured."""
