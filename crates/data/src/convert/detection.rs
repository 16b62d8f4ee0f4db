//! What the detection formats share: COCO's boxes, the question for a list of things, the answer with
//! the boxes of those that are there.

use std::collections::HashSet;

use python::repr::list_repr;
use serde_json::{Value, json};

use super::sink::{Draft, Sink};
use super::{ConvertError, ConvertOptions};
use crate::order::shuffled;

/// Purposes of draws.
const STREAMS: u64 = 4;
const NEGATIVES: u64 = 0;
const ORDER: u64 = 1;
const COUNTS: u64 = 2;

/// What VLM-R1 answers where nothing is found.
const NONE: &str = "None";

/// An image with its objects.
#[derive(Debug, Default)]
pub(super) struct Scene {
    /// Where it comes from, for messages.
    pub(super) place: String,
    /// Its number in the source: draws depend on it.
    pub(super) index: u64,
    /// Its file.
    pub(super) image: String,
    /// Name of its split; empty where the source has none.
    pub(super) split: String,
    /// Width and height, px, where they are known.
    pub(super) size: Option<[f64; 2]>,
    /// What is there: label and `[x, y, width, height]`.
    pub(super) objects: Vec<Object>,
    /// Why nothing can be asked of it: what an object of it is, is not known, so it may be any of those said to be absent.
    pub(super) doubt: Option<String>,
}

/// An annotated thing.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// What it is called.
    pub(super) label: String,
    /// `[x, y, width, height]`, px, or why there is no such box.
    pub(super) bbox: Result<[f64; 4], String>,
    /// A crowd, which no single box describes.
    pub(super) is_crowd: bool,
}

/// `[x, y, width, height]` to `[x1, y1, x2, y2]` in whole pixels inside the image; none without area.
pub(super) fn corners([x, y, width, height]: [f64; 4], size: Option<[f64; 2]>) -> Option<[i64; 4]> {
    let [max_x, max_y] = size.unwrap_or([f64::MAX; 2]);
    let edges = [x, y, x + width, y + height];
    let clipped = [0, 1, 2, 3].map(|edge| {
        let max = if edge % 2 == 0 { max_x } else { max_y };
        edges[edge].clamp(0.0, max).round()
    });
    let [x1, y1, x2, y2] = clipped;
    let is_box = edges.iter().all(|edge| edge.is_finite()) && x1 < x2 && y1 < y2;
    is_box.then(|| clipped.map(|edge| edge as i64))
}

/// Whether a box reaches over the edge of its image by half a pixel or more.
fn is_cut([x, y, width, height]: [f64; 4], size: Option<[f64; 2]>) -> bool {
    let Some(size) = size else {
        return x <= -0.5 || y <= -0.5;
    };
    x <= -0.5 || y <= -0.5 || x + width >= size[0] + 0.5 || y + height >= size[1] + 0.5
}

/// A box in words.
pub(super) fn shown([x, y, width, height]: [f64; 4]) -> String {
    // Avoids `-0`.
    let [x, y, width, height] = [x, y, width, height].map(|edge| edge + 0.0);
    format!("[{x}, {y}, {width}, {height}]")
}

/// The corners of a box, counted where it is cut; what is wrong with one without area.
pub(super) fn cut_corners(
    bbox: [f64; 4],
    size: Option<[f64; 2]>,
    place: &str,
    sink: &mut Sink<'_>,
) -> Result<[i64; 4], String> {
    let Some(corners) = corners(bbox, size) else {
        return Err(format!("a box without area: {}", shown(bbox)));
    };
    if is_cut(bbox, size) {
        sink.cut_box(place, &shown(bbox));
    }
    Ok(corners)
}

impl Scene {
    /// The boxes by label, those without area and crowds left out and counted.
    fn boxes(&self, sink: &mut Sink<'_>) -> Vec<(&str, [i64; 4])> {
        let mut boxes = Vec::new();
        for object in &self.objects {
            if object.is_crowd {
                sink.leave_box("crowd", &self.place, &object.label);
                continue;
            }
            let bbox = object.bbox.clone();
            match bbox.and_then(|bbox| cut_corners(bbox, self.size, &self.place, sink)) {
                Ok(corners) => boxes.push((object.label.as_str(), corners)),
                Err(cause) => {
                    let text = format!("{}: {cause}", object.label);
                    sink.leave_box("no_area", &self.place, &text);
                }
            }
        }
        boxes
    }

    /// Hands on a row that asks for `asked`.
    pub(super) fn ask(&self, asked: &[&str], sink: &mut Sink<'_>) -> Result<(), ConvertError> {
        let boxes: Vec<_> =
            self.boxes(sink).into_iter().filter(|(label, _)| asked.contains(label)).collect();
        let mut draft = Draft {
            place: self.place.clone(),
            split: self.split.clone(),
            images: vec![self.image.clone()],
            question: question(asked),
            answer: Value::String(answer(&boxes)),
            stated_size: self.size,
            ..Draft::default()
        };
        if let Some([width, height]) = self.size {
            draft.columns.insert("width".to_owned(), json!(width as u64));
            draft.columns.insert("height".to_owned(), json!(height as u64));
        }
        sink.row(draft)
    }

    /// Hands on a row that asks for what is there and for drawn categories that are not. `absent`
    /// are names to draw from, those of one list before those of the next; names that are there are
    /// never drawn.
    pub(super) fn ask_with_negatives(
        &self,
        absent: &[Vec<&str>],
        options: &ConvertOptions,
        sink: &mut Sink<'_>,
    ) -> Result<(), ConvertError> {
        if let Some(cause) = &self.doubt {
            sink.skip("bad_row", &self.place, cause);
            return Ok(());
        }
        let there: HashSet<&str> = self.objects.iter().map(|o| o.label.as_str()).collect();
        // A category without a usable box is neither asked for nor counted as absent.
        let boxed = |object: &&Object| {
            let bbox = object.bbox.as_ref().ok();
            !object.is_crowd && bbox.is_some_and(|b| corners(*b, self.size).is_some())
        };
        let mut asked: Vec<&str> = Vec::new();
        for object in self.objects.iter().filter(boxed) {
            if !asked.contains(&object.label.as_str()) {
                asked.push(&object.label);
            }
        }
        let [count, none] = self.draws(options.seed);
        if none < options.none_share {
            asked.clear();
        }
        let [low, high] = options.negatives;
        let wanted = low + (count * (high - low + 1) as f64) as usize;
        // A row has to ask for something.
        let wanted = if asked.is_empty() && high > 0 { wanted.max(1) } else { wanted };
        let negatives = self.negatives(absent, &there, wanted, options.seed);
        asked.extend(negatives);
        if asked.is_empty() {
            sink.skip("nothing_to_ask", &self.place, "no object, and no negative is wanted");
            return Ok(());
        }
        let order = shuffled(asked.len(), options.seed, self.stream(ORDER));
        let asked: Vec<&str> = order.into_iter().map(|index| asked[index as usize]).collect();
        self.ask(&asked, sink)
    }

    fn negatives<'n>(
        &self,
        absent: &[Vec<&'n str>],
        there: &HashSet<&str>,
        wanted: usize,
        seed: u64,
    ) -> Vec<&'n str> {
        let mut drawn: Vec<&str> = Vec::new();
        for (level, names) in absent.iter().enumerate() {
            let stream = self.stream(NEGATIVES) ^ ((level as u64) << 56);
            for index in shuffled(names.len(), seed, stream) {
                let name = names[index as usize];
                if drawn.len() == wanted {
                    return drawn;
                }
                if !there.contains(name) && !drawn.contains(&name) {
                    drawn.push(name);
                }
            }
        }
        drawn
    }

    fn stream(&self, purpose: u64) -> u64 {
        self.index * STREAMS + purpose
    }

    /// Two numbers in `[0, 1)`.
    fn draws(&self, seed: u64) -> [f64; 2] {
        let key = base::DrawKey { seed, step: 0, prompt: self.stream(COUNTS), completion: 0 };
        [key.uniform(0), key.uniform(1)]
    }
}

/// VLM-R1's question for a list of things.
pub fn question(asked: &[&str]) -> String {
    format!(
        "Please carefully check the image and detect the following objects: {}. Output the bbox coordinates of \
         detected objects in JSON format in <answer></answer>. The bbox coordinate format should be: \n\
         ```json\n[{{\"bbox_2d\": [x1, y1, x2, y2], \"label\": \"object name\"}}]\n```\n. If no targets are \
         detected in the image, simply respond with \"None\".",
        list_repr(asked)
    )
}

/// The labels that such a question names; none of another.
pub fn asked_labels(question: &str) -> Vec<String> {
    let list = question.split_once("objects: [").map_or("", |(_, list)| list);
    let mut labels = Vec::new();
    let mut rest = list.chars();
    // Python's `repr` of a list of texts.
    while let Some(quote) = rest.next() {
        match quote {
            '\'' | '"' => {
                let mut label = String::new();
                while let Some(c) = rest.next().filter(|c| *c != quote) {
                    label.extend(if c == '\\' { rest.next() } else { Some(c) });
                }
                labels.push(label);
            }
            ',' | ' ' => {}
            _ => break,
        }
    }
    labels
}

fn answer(boxes: &[(&str, [i64; 4])]) -> String {
    if boxes.is_empty() {
        return NONE.to_owned();
    }
    let boxes: Vec<String> = boxes
        .iter()
        .map(|(label, corners)| {
            let [x1, y1, x2, y2] = corners;
            let label = Value::String((*label).to_owned());
            format!("{{\"bbox_2d\": [{x1}, {y1}, {x2}, {y2}], \"label\": {label}}}")
        })
        .collect();
    format!("```json\n[\n{}\n]\n```", boxes.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_become_corners_inside_the_image() {
        let size = Some([100.0, 80.0]);
        assert_eq!(corners([10.4, 20.6, 30.2, 40.0], size), Some([10, 21, 41, 61]));
        assert_eq!(corners([-3.0, 70.0, 20.0, 20.0], size), Some([0, 70, 17, 80]));
        for none in [
            [10.0, 10.0, 0.2, 10.0],
            [10.0, 10.0, -5.0, 10.0],
            [200.0, 10.0, 5.0, 5.0],
            [f64::NAN, 0.0, 1.0, 1.0],
            [0.0, 0.0, f64::INFINITY, 5.0],
        ] {
            assert_eq!(corners(none, size), None, "{none:?}");
        }
    }

    #[test]
    fn question_and_answer_read_as_vlm_r1_has_them() {
        let text = question(&["cup", "dog's bowl"]);
        assert_eq!(asked_labels(&text), ["cup", "dog's bowl"]);
        let quotes = ["a \"b\" 'c'", "d\\e"];
        assert_eq!(asked_labels(&question(&quotes)), quotes);
        assert!(asked_labels("Where is the cup?").is_empty());
        assert!(text.contains("objects: ['cup', \"dog's bowl\"]. Output the bbox"), "{text}");
        assert!(text.ends_with(
            "\n```\n. If no targets are detected in the image, simply respond with \"None\"."
        ));
        assert_eq!(answer(&[]), "None");
        assert_eq!(
            answer(&[("a \"b\"", [1, 2, 3, 4])]),
            "```json\n[\n{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a \\\"b\\\"\"}\n]\n```"
        );
    }
}
