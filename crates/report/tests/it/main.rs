//! The page as a whole, and files on disk.

use std::fs;

use proptest::prelude::*;
use report::{
    AnnotatedImage, Body, CaptionLine, Colour, EncodedImage, Interval, IntervalChart, IntervalRow,
    KeyMetric, LabelledBox, LineChart, Report, ReportError, Section, Series, Table, Target,
    read_metrics, write_svg,
};

fn chart() -> LineChart {
    LineChart {
        title: "Reward & more".to_owned(),
        x_label: "step".to_owned(),
        y_label: "mean".to_owned(),
        series: vec![
            Series::new("a", Colour::Blue, vec![[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]).smoothed(3),
            Series {
                band: vec![[0.0, 0.0, 1.0], [2.0, 0.5, 1.5]],
                dashed: true,
                ..Series::new("b", Colour::Red, vec![[0.0, 0.5], [2.0, 1.0]])
            },
        ],
        y_includes: vec![0.0],
    }
}

fn section(heading: &str, body: Body) -> Section {
    Section { heading: heading.to_owned(), note: "note".to_owned(), body }
}

fn report() -> Report {
    let interval = Interval { mean: 0.5, low: 0.4, high: 0.6, num_values: 10 };
    let image = AnnotatedImage {
        image: EncodedImage::from_rgb(2, 2, &[9; 12]).expect("pixels"),
        boxes: vec![LabelledBox {
            label: "true".to_owned(),
            colour: Colour::Green,
            corners: [0.0, 0.0, 1.0, 1.0],
        }],
        title: "the <b>red</b> ball".to_owned(),
        lines: vec![CaptionLine {
            label: "GRPO".to_owned(),
            colour: Some(Colour::Blue),
            text: "<answer>[0, 0, 1, 1]</answer>".to_owned(),
            value: "1.00".to_owned(),
        }],
    };
    let row = IntervalRow { label: "start".to_owned(), interval, colour: Colour::Grey };
    Report {
        title: "A <run>".to_owned(),
        summary: "It learns.".to_owned(),
        metrics: vec![KeyMetric {
            label: "IoU".to_owned(),
            value: "0.5".to_owned(),
            note: "was 0.3".to_owned(),
        }],
        sections: vec![
            section("Text", Body::Text(vec!["one".to_owned(), "two".to_owned()])),
            section("Code", Body::Code("a: 1\nb: <2>".to_owned())),
            section("Table", Body::Table(Table::default())),
            section("Charts", Body::Charts(vec![chart(), chart()])),
            section(
                "Intervals",
                Body::Intervals(vec![IntervalChart {
                    title: "IoU".to_owned(),
                    x_label: "mean".to_owned(),
                    rows: vec![row],
                }]),
            ),
            section("Images", Body::Images(vec![image])),
        ],
    }
}

/// Every element that is opened is closed in its turn.
fn assert_well_formed(markup: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in markup.split('<').skip(1) {
        let end = tag.find('>').unwrap_or_else(|| panic!("unclosed: <{tag}"));
        let tag = &tag[..end];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another");
        } else if !tag.ends_with('/') && !["!doctype", "meta"].contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    let html = report().html();
    assert_well_formed(&html);
    let outside = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for word in ["http", "<script", "<link", "@import", "url(", "src="] {
        assert!(!outside.contains(word), "{word}");
    }
    for text in ["A &lt;run&gt;", "&lt;answer&gt;[0, 0, 1, 1]", "b: &lt;2&gt;", "the &lt;b&gt;red"]
    {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("<svg").count(), 4);
}

#[test]
fn a_file_of_its_own_carries_its_style() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("reward.svg");
    write_svg(&path, &chart()).expect("written");
    let svg = fs::read_to_string(&path).expect("a file");
    assert_well_formed(&svg);
    assert!(svg.contains("prefers-color-scheme: dark") && svg.contains("--blue:"));
    assert!(!chart().svg(Target::Inline).contains("<style"));
}

#[test]
fn a_report_replaces_the_old_one_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.html");
    fs::write(&path, "old").expect("written");
    report().write(&path).expect("written");
    assert_eq!(fs::read_to_string(&path).expect("a file"), report().html());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn a_failed_write_names_the_file_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing/report.html");
    let error = report().write(&missing).expect_err("no such folder");
    assert!(error.to_string().contains("missing/report.html"), "{error}");
    // A folder under the final name: the rename fails after the temporary file was written.
    let taken = folder.path().join("report.html");
    fs::create_dir(&taken).expect("a folder");
    report().write(&taken).expect_err("a folder is in the way");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn broken_metrics_name_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metrics.jsonl");
    fs::write(&path, "{\"step\": 1}\n\n{\"step\": 2}\n").expect("written");
    assert_eq!(read_metrics(&path).expect("metrics").len(), 2);
    fs::write(&path, "{\"step\": 1}\n\n{\"step\": \n").expect("written");
    let error = read_metrics(&path).expect_err("a broken line");
    assert!(matches!(error, ReportError::Metrics { line: 3, .. }), "{error}");
    assert!(error.to_string().contains("metrics.jsonl:3: "), "{error}");
}

proptest! {
    #[test]
    fn any_numbers_make_a_well_formed_chart(
        ys in prop::collection::vec(any::<f64>(), 0..60),
        smooth in 0usize..9,
        include in any::<f32>(),
        title in any::<String>(),
    ) {
        let points = ys.iter().enumerate().map(|(x, &y)| [x as f64, y]).collect();
        let chart = LineChart {
            title,
            series: vec![Series::new("a", Colour::Blue, points).smoothed(smooth)],
            y_includes: vec![f64::from(include)],
            ..LineChart::default()
        };
        let svg = chart.svg(Target::Standalone);
        assert_well_formed(&svg);
        let drawing = &svg[svg.rfind("</style>").expect("a style")..];
        let paths = drawing.split(" d=\"").skip(1).map(|rest| rest.split('"').next());
        for path in paths.flatten() {
            prop_assert!(!path.contains("NaN") && !path.contains("inf"), "{}", path);
        }
    }
}
