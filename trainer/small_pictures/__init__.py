"""Small pictures of a folder -> larger ones in another folder, with their captions."""
