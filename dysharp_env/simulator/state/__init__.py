"""What a layer is while it runs: codes, tables of what decisions show, records, and how they are set up."""
