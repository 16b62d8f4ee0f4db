//! Image path: decode, resize, normalise, patchify.
