//! The first frame of a GIF file, on its canvas, as Pillow shows it.

use super::decode::check_size;
use super::{ImageCause, RgbImage};

const FORMAT: &str = "GIF";

pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageCause> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    let mut decoder = options.read_info(bytes).map_err(cause)?;
    let canvas = (decoder.width(), decoder.height());
    let Some(frame) = decoder.next_frame_info().map_err(cause)? else {
        return Err(ImageCause::Corrupt { format: FORMAT, detail: "no frame".to_owned() });
    };
    let [left, top, frame_width, frame_height] =
        [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    // The canvas grows where the frame leaves it; what the frame leaves free is transparent, or the
    // first colour.
    let width = usize::from(canvas.0).max(left + frame_width);
    let height = usize::from(canvas.1).max(top + frame_height);
    let background = frame.transparent.unwrap_or(0);
    check_size(width as u64, height as u64, max_pixels)?;
    check_size(frame_width as u64, frame_height as u64, max_pixels)?;
    let colors = color_table(decoder.palette().map_err(cause)?);
    let mut indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut indices).map_err(cause)?;

    let mut pixels = colors[usize::from(background)].repeat(width * height);
    for (y, row) in indices.chunks_exact(frame_width).enumerate() {
        let start = 3 * ((top + y) * width + left);
        let target = &mut pixels[start..start + 3 * frame_width];
        for (pixel, &index) in target.chunks_exact_mut(3).zip(row) {
            pixel.copy_from_slice(&colors[usize::from(index)]);
        }
    }
    Ok(RgbImage::new(width as u32, height as u32, pixels))
}

/// All 256 colours; indices beyond the file's table are grey, as in Pillow.
fn color_table(palette: &[u8]) -> [[u8; 3]; 256] {
    let mut colors = std::array::from_fn(|index| [index as u8; 3]);
    for (color, entry) in colors.iter_mut().zip(palette.chunks_exact(3)) {
        color.copy_from_slice(entry);
    }
    colors
}

fn cause(error: gif::DecodingError) -> ImageCause {
    let detail = error.to_string();
    let ends_early = match error {
        gif::DecodingError::UnexpectedEof => true,
        gif::DecodingError::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        _ => false,
    };
    if ends_early {
        ImageCause::Truncated { format: FORMAT, detail }
    } else {
        ImageCause::Corrupt { format: FORMAT, detail }
    }
}
