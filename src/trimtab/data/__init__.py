"""From records to what a stage trains on: encoding, inspection, the bundled quickstart data."""
