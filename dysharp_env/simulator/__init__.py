"""When things happen: the compiled discrete-event engine, its decision points and its slow readable twin."""
