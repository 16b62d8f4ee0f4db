//! Scenes that no two parts of a dataset share, their images, and files of rows.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};
use tiny::scenes::Scene;

/// Draws scenes and writes their images.
pub struct Drawer {
    images: PathBuf,
    seen: HashSet<Scene>,
    /// What all draws of a dataset come from.
    pub rng: ChaCha8Rng,
}

impl Drawer {
    /// For images below `images`.
    pub fn new(images: PathBuf, seed: u64) -> Self {
        Self { images, seen: HashSet::new(), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A scene that was not drawn before.
    pub fn scene(&mut self) -> Scene {
        loop {
            let scene = Scene::draw(&mut self.rng);
            if self.seen.insert(scene.clone()) {
                return scene;
            }
        }
    }

    /// Writes the image of a scene; its path below the folder of images.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn shown_image(&self, part: &str, index: usize, scene: &Scene) -> Result<String> {
        let name = format!("{part}/{index:05}.png");
        let path = self.images.join(&name);
        if index == 0 {
            let folder = self.images.join(part);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        scene.render().save(&path).with_context(|| path.display().to_string())?;
        Ok(name)
    }
}

/// A row of VLM-R1's JSONL.
pub fn row(id: &str, image: &str, question: &str, answer: &str) -> Value {
    json!({
        "id": id,
        "image": image,
        "conversations": [
            {"from": "human", "value": format!("<image>{question}")},
            {"from": "gpt", "value": answer},
        ],
    })
}

/// Writes rows, one a line.
///
/// # Errors
/// A file that cannot be written.
pub fn write_rows(path: &Path, rows: impl IntoIterator<Item = Value>) -> Result<()> {
    let context = || path.display().to_string();
    let mut out = BufWriter::new(File::create(path).with_context(context)?);
    for row in rows {
        writeln!(out, "{row}").with_context(context)?;
    }
    out.flush().with_context(context)
}

/// `[x1, y1, x2, y2]`.
pub fn corners(bbox: [u32; 4]) -> String {
    let [x1, y1, x2, y2] = bbox;
    format!("[{x1}, {y1}, {x2}, {y2}]")
}
