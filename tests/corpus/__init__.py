"""Files that no parser may fall over, and whole ones that fuzzers begin with."""
