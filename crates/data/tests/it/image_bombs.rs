//! Small files that ask for much: memory and work stay bounded.

use std::process::Command;
use std::time::{Duration, Instant};

use data::image::{ImageCause, MAX_DECODED_PIXELS, decode};

use crate::image::input_bytes;

/// A zlib stream of zeros, 158 bytes for each of its own: the fixed code, `258 bytes from 1 back` again and again.
fn zeros(length: usize) -> Vec<u8> {
    let mut bits: Vec<bool> = vec![true, true, false];
    // The first zero as a byte of its own: 00110000.
    bits.extend([false, false, true, true, false, false, false, false]);
    for _ in 0..length / 258 {
        // 285 is 11000101, and the distance 1 is 00000.
        bits.extend([true, true, false, false, false, true, false, true]);
        bits.extend([false; 5]);
    }
    bits.extend([false; 7]);
    let bytes = bits.chunks(8).map(|bits| {
        let bits = bits.iter().enumerate();
        bits.map(|(place, bit)| u8::from(*bit) << place).sum::<u8>()
    });
    let end = length / 258 * 258 + 1;
    // All zeros: the sum of sums counts them.
    let adler = ((end % 65521) as u32) << 16 | 1;
    let mut stream: Vec<u8> = [0x78, 0x9c].into_iter().chain(bytes).collect();
    stream.extend(adler.to_be_bytes());
    stream
}

fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let sum = crate::image_decode::crc32(&[name.as_slice(), data].concat());
    [&(data.len() as u32).to_be_bytes(), name.as_slice(), data, &sum.to_be_bytes()].concat()
}

fn png(width: u32, height: u32, middle: &[Vec<u8>]) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = chunk(b"IHDR", &[size.as_slice(), &[8, 2, 0, 0, 0]].concat());
    [b"\x89PNG\r\n\x1a\n".as_slice(), &header, &middle.concat(), &chunk(b"IEND", &[])].concat()
}

/// Each bomb with what is said of it; nothing where it is an image after all.
fn bombs() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let image = || chunk(b"IDAT", &zeros(3 * 258));
    let much = zeros(150 << 20);
    let text = |name: &[u8; 4], head: &[u8], stream: &[u8]| chunk(name, &[head, stream].concat());
    let most = zeros(1_000_000);
    let texts: Vec<Vec<u8>> = (0..1000).map(|_| text(b"zTXt", b"k\0\0", &most)).collect();
    let animated: Vec<Vec<u8>> = (0..50_000).map(|_| chunk(b"abCd", b"x")).collect();
    let mut bombs = vec![
        (
            "packed text",
            png(16, 15, &[text(b"zTXt", b"k\0\0", &much), image()]),
            Some("unpacks to more than"),
        ),
        (
            "international text",
            png(16, 15, &[image(), text(b"iTXt", b"k\0\x01\0\0\0", &much)]),
            Some("unpacks to more than"),
        ),
        (
            "profile",
            png(16, 15, &[text(b"iCCP", b"k\0\0", &much), image()]),
            Some("unpacks to more than"),
        ),
        ("many texts", png(16, 15, &[texts.concat(), image()]), Some("texts of more than")),
        ("image", png(16, 15, &[chunk(b"IDAT", &much)]), None),
        ("many chunks", png(16, 15, &[animated.concat(), image()]), None),
        ("size", png(60_000, 60_000, &[image()]), Some("over the bound")),
    ];
    let jpeg = input_bytes("progressive_420.jpg");
    let last = jpeg.windows(2).rposition(|pair| pair == [0xff, 0xda]).expect("a scan");
    let end = jpeg.len() - 2;
    let mut scans = jpeg[..last].to_vec();
    let size = jpeg.windows(2).position(|pair| pair == [0xff, 0xc2]).expect("a header");
    scans[size + 5..size + 9].copy_from_slice(&[0x20, 0, 0x20, 0]);
    scans.extend(jpeg[last..end].repeat(2000));
    scans.extend(&jpeg[end..]);
    bombs.push(("scans", scans, Some("scans over 67108864 px")));
    let mut gif = input_bytes("palette.gif");
    let frame = gif[13..gif.len() - 1].to_vec();
    let tail = gif.pop().expect("an end");
    gif.extend(frame.repeat(2000));
    gif.push(tail);
    bombs.push(("frames", gif, None));
    bombs
}

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn bombs_alone() {
    for (name, bytes, expected) in bombs() {
        let start = Instant::now();
        let result = decode(&bytes, MAX_DECODED_PIXELS);
        assert!(start.elapsed() < Duration::from_secs(20), "{name}");
        match (expected, result) {
            (None, Ok(_)) => {}
            (Some(expected), Err(error)) => {
                assert!(error.to_string().contains(expected), "{name}: {error}");
                assert!(!matches!(error, ImageCause::Truncated { .. }), "{name}: {error}");
            }
            (_, result) => panic!("{name}: {:?}", result.map(|image| image.width())),
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    println!("peak {}", peak.split_whitespace().nth(1).expect("kB"));
}

/// The largest bomb is 1 MiB and unpacks to 150 MiB, 1000 texts to 1 GB.
#[test]
fn small_files_take_little_memory() {
    let program = std::env::current_exe().expect("this program");
    let run = Command::new(program)
        .args(["image_bombs::bombs_alone", "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    let peak = said.split("peak ").nth(1).and_then(|text| text.split_whitespace().next());
    let peak: u64 = peak.and_then(|kb| kb.parse().ok()).expect("a peak in kB");
    assert!(peak < 100_000, "{peak} kB");
}
