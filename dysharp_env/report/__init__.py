"""What people look at: records and tables of results, timelines, pictures, text, validation against closed forms."""
