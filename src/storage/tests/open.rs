//! What a directory may and may not be opened as.
