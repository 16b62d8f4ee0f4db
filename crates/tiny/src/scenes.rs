//! Scenes of simple shapes whose boxes are known exactly, and expressions that name one of them.
//!
//! Box edges lie on a grid of [`GRID_PX`], so that a coordinate is one of few numbers; shapes of a
//! scene never touch and differ in colour or kind. The questions about them are made elsewhere.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt};

/// Side of an image, px.
pub const IMAGE_PX: u32 = 64;
/// Box edges are multiples of this, px.
pub const GRID_PX: u32 = 8;
/// Sides a shape may have, px.
const SIDES_PX: [u32; 3] = [16, 24, 32];
/// Shapes of a scene.
const NUM_SHAPES: std::ops::RangeInclusive<usize> = 2..=3;
const BACKGROUND: Rgb<u8> = Rgb([244, 243, 240]);

/// What a shape looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A filled square.
    Square,
    /// A filled disc.
    Disc,
    /// A filled triangle, its tip up.
    Triangle,
    /// Two bars that cross.
    Cross,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Square, Self::Disc, Self::Triangle, Self::Cross];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Square => "square",
            Self::Disc => "disc",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
        }
    }

    /// Whether the point at `(u, v)`, both in `(0, 1)` from the top left of the box, is inside.
    fn contains(self, u: f64, v: f64) -> bool {
        let (du, dv) = ((u - 0.5).abs(), (v - 0.5).abs());
        match self {
            Self::Square => true,
            Self::Disc => du * du + dv * dv <= 0.25,
            Self::Triangle => du <= v / 2.0,
            Self::Cross => du <= 1.0 / 6.0 || dv <= 1.0 / 6.0,
        }
    }
}

/// A shape's colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// Red.
    Red,
    /// Green.
    Green,
    /// Blue.
    Blue,
    /// Yellow.
    Yellow,
    /// Black.
    Black,
}

impl Colour {
    /// All colours.
    pub const ALL: [Self; 5] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Black];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Black => "black",
        }
    }

    fn rgb(self) -> Rgb<u8> {
        Rgb(match self {
            Self::Red => [214, 40, 40],
            Self::Green => [36, 150, 64],
            Self::Blue => [40, 84, 200],
            Self::Yellow => [240, 190, 20],
            Self::Black => [32, 32, 36],
        })
    }
}

/// One shape of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// `[x1, y1, x2, y2]`, px, right and bottom edge excluded.
    pub bbox: [u32; 4],
    /// What it looks like.
    pub kind: Kind,
    /// Its colour.
    pub colour: Colour,
}

impl Shape {
    fn draw(rng: &mut impl Rng) -> Self {
        let side = SIDES_PX[rng.random_range(0..SIDES_PX.len())];
        let cells = (IMAGE_PX - side) / GRID_PX;
        let x1 = rng.random_range(0..=cells) * GRID_PX;
        let y1 = rng.random_range(0..=cells) * GRID_PX;
        Self {
            bbox: [x1, y1, x1 + side, y1 + side],
            kind: Kind::ALL[rng.random_range(0..Kind::ALL.len())],
            colour: Colour::ALL[rng.random_range(0..Colour::ALL.len())],
        }
    }

    /// Length of a side, px.
    pub fn side(&self) -> u32 {
        self.bbox[2] - self.bbox[0]
    }

    /// Twice the centre, so that it is whole: `[x, y]`.
    pub fn centre(&self) -> [u32; 2] {
        let [x1, y1, x2, y2] = self.bbox;
        [x1 + x2, y1 + y2]
    }

    fn overlaps(&self, other: &Self) -> bool {
        let ([ax1, ay1, ax2, ay2], [bx1, by1, bx2, by2]) = (self.bbox, other.bbox);
        ax1 < bx2 && bx1 < ax2 && ay1 < by2 && by1 < ay2
    }

    /// Colour and kind, what a thinking text calls it.
    pub fn name(&self) -> String {
        format!("{} {}", self.colour.word(), self.kind.word())
    }
}

/// How an expression names its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clue {
    /// Colour and kind, or one of them where it is enough.
    Look,
    /// Where it lies among the others.
    Place,
    /// Its size among the others.
    Size,
}

impl Clue {
    /// All clues.
    pub const ALL: [Self; 3] = [Self::Look, Self::Place, Self::Size];

    /// The word for it in data and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Place => "place",
            Self::Size => "size",
        }
    }
}

/// Words that fit exactly one shape of a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// Such as `the red disc`.
    pub text: String,
    /// By what it names.
    pub clue: Clue,
    /// Index of the shape.
    pub shape: usize,
}

/// Shapes that do not overlap, ordered by their corner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// The shapes; no two share colour and kind.
    pub shapes: Vec<Shape>,
}

impl Scene {
    /// Draws a scene.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let num_shapes = rng.random_range(NUM_SHAPES);
        loop {
            let mut shapes: Vec<Shape> = (0..num_shapes).map(|_| Shape::draw(rng)).collect();
            shapes.sort();
            let scene = Self { shapes };
            if scene.is_sound() {
                return scene;
            }
        }
    }

    fn is_sound(&self) -> bool {
        self.shapes.iter().enumerate().all(|(i, a)| {
            let later = &self.shapes[i + 1..];
            later.iter().all(|b| !a.overlaps(b) && (a.colour, a.kind) != (b.colour, b.kind))
        })
    }

    /// The image, [`IMAGE_PX`] on each side.
    pub fn render(&self) -> RgbImage {
        let mut image = RgbImage::from_pixel(IMAGE_PX, IMAGE_PX, BACKGROUND);
        for shape in &self.shapes {
            let [x1, y1, x2, y2] = shape.bbox;
            let side = f64::from(shape.side());
            for (x, y) in (y1..y2).flat_map(|y| (x1..x2).map(move |x| (x, y))) {
                let (u, v) = (f64::from(x - x1) + 0.5, f64::from(y - y1) + 0.5);
                if shape.kind.contains(u / side, v / side) {
                    image.put_pixel(x, y, shape.colour.rgb());
                }
            }
        }
        image
    }

    /// All expressions, each of which fits one shape and no other.
    pub fn expressions(&self) -> Vec<Expression> {
        let mut all = Vec::new();
        for (shape, it) in self.shapes.iter().enumerate() {
            let mut push = |clue, text| all.push(Expression { text, clue, shape });
            let alone =
                |fits: &dyn Fn(&Shape) -> bool| self.shapes.iter().filter(|s| fits(s)).count() == 1;
            push(Clue::Look, format!("the {}", it.name()));
            if alone(&|s| s.colour == it.colour) {
                push(Clue::Look, format!("the {} shape", it.colour.word()));
            }
            if alone(&|s| s.kind == it.kind) {
                push(Clue::Look, format!("the {}", it.kind.word()));
            }
            let most = |value: &dyn Fn(&Shape) -> i64| alone(&|s| value(s) >= value(it));
            let [x, y] = [0, 1].map(|axis| move |s: &Shape| i64::from(s.centre()[axis]));
            let side = |s: &Shape| i64::from(s.side());
            let places: [(&str, bool); 4] = [
                ("left", most(&|s| -x(s))),
                ("right", most(&x)),
                ("top", most(&|s| -y(s))),
                ("bottom", most(&y)),
            ];
            for (place, _) in places.into_iter().filter(|(_, fits)| *fits) {
                push(Clue::Place, format!("the {place} shape"));
            }
            if most(&side) {
                push(Clue::Size, "the largest shape".to_owned());
            }
            if most(&|s| -side(s)) {
                push(Clue::Size, "the smallest shape".to_owned());
            }
        }
        all
    }
}

/// Every expression that a scene can give rise to: what a tokenizer must know.
pub fn all_expressions() -> Vec<String> {
    let mut all: Vec<String> = ["left", "right", "top", "bottom", "largest", "smallest"]
        .into_iter()
        .chain(Colour::ALL.map(Colour::word))
        .map(|word| format!("the {word} shape"))
        .collect();
    for kind in Kind::ALL.map(Kind::word) {
        all.push(format!("the {kind}"));
        all.extend(Colour::ALL.map(|colour| format!("the {} {kind}", colour.word())));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn scenes(num: usize) -> Vec<Scene> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        (0..num).map(|_| Scene::draw(&mut rng)).collect()
    }

    #[test]
    fn boxes_are_exact() {
        for scene in scenes(200) {
            let image = scene.render();
            for shape in &scene.shapes {
                assert!(shape.bbox.iter().all(|edge| edge % GRID_PX == 0 && *edge <= IMAGE_PX));
                let inside: Vec<(u32, u32)> = image
                    .enumerate_pixels()
                    .filter(|&(x, y, p)| {
                        let [x1, y1, x2, y2] = shape.bbox;
                        *p == shape.colour.rgb() && (x1..x2).contains(&x) && (y1..y2).contains(&y)
                    })
                    .map(|(x, y, _)| (x, y))
                    .collect();
                let xs = inside.iter().map(|p| p.0);
                let ys = inside.iter().map(|p| p.1);
                let tight = [
                    xs.clone().min().unwrap(),
                    ys.clone().min().unwrap(),
                    xs.max().unwrap() + 1,
                    ys.max().unwrap() + 1,
                ];
                // A triangle's tip may be narrower than a pixel, and nothing else may be off.
                let slack = u32::from(shape.kind == Kind::Triangle);
                for (edge, known) in tight.iter().zip(shape.bbox) {
                    assert!(edge.abs_diff(known) <= slack, "{shape:?}: {tight:?}");
                }
            }
            let painted = image.pixels().filter(|p| **p != BACKGROUND).count() as u32;
            let most: u32 = scene.shapes.iter().map(|s| s.side().pow(2)).sum();
            assert!(painted <= most && painted * 3 > most, "{painted} of {most}");
        }
    }

    #[test]
    fn an_expression_fits_one_shape_only() {
        let scene = Scene {
            shapes: vec![
                Shape { bbox: [0, 16, 16, 32], kind: Kind::Disc, colour: Colour::Red },
                Shape { bbox: [32, 0, 64, 32], kind: Kind::Disc, colour: Colour::Blue },
                Shape { bbox: [40, 40, 56, 56], kind: Kind::Cross, colour: Colour::Blue },
            ],
        };
        let of = |shape| {
            let all = scene.expressions().into_iter().filter(move |e| e.shape == shape);
            all.map(|e| e.text).collect::<Vec<_>>()
        };
        assert_eq!(of(0), ["the red disc", "the red shape", "the left shape"]);
        // Its centre (48, 16) shares x with the cross: neither is the right shape.
        assert_eq!(of(1), ["the blue disc", "the top shape", "the largest shape"]);
        assert_eq!(of(2), ["the blue cross", "the cross", "the bottom shape"]);
    }

    #[test]
    fn every_expression_is_known_beforehand() {
        let known: HashSet<String> = all_expressions().into_iter().collect();
        let mut seen = HashSet::new();
        for scene in scenes(2000) {
            let expressions = scene.expressions();
            let texts: HashSet<&String> = expressions.iter().map(|e| &e.text).collect();
            assert_eq!(texts.len(), expressions.len(), "{scene:?}");
            seen.extend(expressions.into_iter().map(|e| e.text));
        }
        assert_eq!(seen, known);
    }
}
