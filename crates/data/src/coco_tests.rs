use std::fs;

use super::*;

fn read(text: &str) -> Result<CocoFile, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("val.json");
    fs::write(&path, text).expect("writes");
    CocoFile::read(&path).map_err(|error| error.to_string())
}

/// A file with two images, of which the first has the annotations.
fn file(ids: [&str; 2], annotations: &str) -> CocoFile {
    let text = format!(
        "\u{feff}{{\"info\": NaN, \"images\": [{{\"id\": {}, \"file_name\": \"a.png\", \"width\": 64, \"height\": 48.0}}, \
         {{\"id\": {}, \"file_name\": \"b.png\"}}], \"annotations\": [{annotations}], \"categories\": [{{\"id\": 1, \"name\": \"cup\"}}]}}",
        ids[0], ids[1]
    );
    read(&text).expect("COCO's form")
}

/// Each annotation: number of its image, name, box and whether it is a crowd; or what is wrong.
fn told(file: &CocoFile) -> Vec<String> {
    let index = file.index();
    let each = file.annotations.iter().map(|annotation| {
        let placed = index.place(annotation);
        let bbox = annotation.bbox.clone().map(|bbox| format!("{bbox:?}"));
        match (placed, bbox, annotation.is_crowd.clone()) {
            (Err(Unplaced::NoImage(cause)), ..) => format!("nowhere: {cause}"),
            (Err(Unplaced::Bad(image, cause)), ..) => format!("{image}: {cause}"),
            (Ok((image, name)), Ok(bbox), Ok(is_crowd)) => {
                format!("{image} {name} {bbox} {is_crowd}")
            }
            (Ok((image, _)), Err(cause), _) | (Ok((image, _)), _, Err(cause)) => {
                format!("{image}: {cause}")
            }
        }
    });
    each.collect()
}

#[test]
fn what_pycocotools_takes_is_taken() {
    let good = "0 cup [1.0, 2.0, 3.0, 4.0] false";
    for (ids, image_id) in [
        (["7", "8"], "7"),
        (["\"a\"", "\"b\""], "\"a\""),
        (["-7", "8"], "-7.0"),
        (["7.5", "8"], "7.5"),
    ] {
        for fields in [
            "\"iscrowd\": 0",
            "\"iscrowd\": false",
            "\"iscrowd\": 0.0",
            "\"iscrowd\": null",
            "\"area\": NaN",
            "\"area\": Infinity, \"segmentation\": [[-Infinity, 1e400]]",
            "\"caption\": \"\\ud83d\"",
            "\"id\": true",
        ] {
            let annotations = format!(
                "{{\"image_id\": {image_id}, \"category_id\": 1.0, \"bbox\": [1, 2.0, 3, 4e0], {fields}}}"
            );
            assert_eq!(told(&file(ids, &annotations)), [good], "{annotations}");
        }
    }
    let crowds = ["1", "true", "1.0", "2"].map(|crowd| {
        let annotation = format!(
            "{{\"image_id\": 7, \"category_id\": 1, \"bbox\": [1, 2, 3, 4], \"iscrowd\": {crowd}}}"
        );
        told(&file(["7", "8"], &annotation)).concat()
    });
    assert_eq!(crowds, ["0 cup [1.0, 2.0, 3.0, 4.0] true"; 4]);
}

#[test]
fn a_broken_annotation_is_told_by_its_id_and_keeps_the_others() {
    for (fields, cause) in [
        ("\"bbox\": null", "`bbox` is null, expected [x, y, width, height]"),
        ("\"area\": 1", "no `bbox`, expected [x, y, width, height]"),
        ("\"bbox\": []", "`bbox` is [], expected"),
        ("\"bbox\": [1, 2, 3]", "`bbox` is [1, 2, 3], expected"),
        ("\"bbox\": [1, 2, \"3\", null]", "`bbox` is [1, 2, \"3\", null], expected"),
        ("\"bbox\": [NaN, 2, 3, 1e999]", "`bbox` is [NaN, 2, 3, Infinity], expected"),
        ("\"bbox\": \"1, 2\"", "`bbox` is \"1, 2\", expected"),
        ("\"bbox\": [1, 2, 3, 4], \"iscrowd\": \"no\"", "`iscrowd` is \"no\", expected 0 or 1"),
        ("\"bbox\": [1, 2, 3, 4], \"iscrowd\": 0.5", "`iscrowd` is 0.5, expected 0 or 1"),
    ] {
        let annotations = format!(
            "{{\"id\": \"x\", \"image_id\": 7, \"category_id\": 1, {fields}}}, {{\"id\": 3, \"image_id\": 8, \"category_id\": 1, \"bbox\": [1, 2, 3, 4]}}"
        );
        let told = told(&file(["7", "8"], &annotations));
        assert!(told[0].starts_with(&format!("0: {cause}")), "{told:?}");
        assert_eq!(told[1], "1 cup [1.0, 2.0, 3.0, 4.0] false");
    }
    let place = |fields: &str| {
        told(&file(["7", "\"8\""], &format!("{{{fields}, \"bbox\": [1, 2, 3, 4]}}"))).concat()
    };
    for (fields, cause) in [
        ("\"id\": 5, \"image_id\": 9, \"category_id\": 1", "nowhere: annotation 5: no image 9"),
        (
            "\"id\": \"x\", \"image_id\": null, \"category_id\": 1",
            "nowhere: annotation \"x\": `image_id` is null, expected a number or a text",
        ),
        (
            "\"image_id\": 7, \"category_id\": 9",
            "0: annotation without an id, the 1. of the list: no category 9",
        ),
        ("\"id\": 5, \"image_id\": 7", "0: annotation 5: no `category_id`"),
        (
            "\"id\": 5, \"image_id\": \"7\", \"category_id\": 1",
            "nowhere: annotation 5: no image \"7\", but 7: \"7\" is a text, 7 a number, and the two are not equal",
        ),
        (
            "\"id\": 5, \"image_id\": 8, \"category_id\": 1",
            "nowhere: annotation 5: no image 8, but \"8\": \"8\" is a text, 8 a number, and the two are not equal",
        ),
        (
            "\"id\": 5, \"image_id\": 7, \"category_id\": \"1\"",
            "0: annotation 5: no category \"1\", but 1: ",
        ),
    ] {
        assert!(place(fields).starts_with(cause), "{}", place(fields));
    }
}

#[test]
fn images_and_categories_that_are_none_are_told() {
    let text = r#"{"images": [{"id": 1, "file_name": "a.png"}, {"id": null, "file_name": "b.png"}, {"id": 3, "file_name": 7}, 9,
        {"id": 4, "file_name": "d.png", "width": "64", "text": ["a", 7], "neg_text": "b"}], "annotations": [],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cup"}, {"id": 1, "name": "mug"}, {"id": 3}]}"#;
    let file = read(text).expect("COCO's form");
    let images: Vec<&str> = file.images.iter().map(|image| image.file_name.as_str()).collect();
    assert_eq!(images, ["a.png", "d.png"]);
    assert_eq!(
        file.bad_images,
        [
            "image 2 of the list: `id` is null, expected a number or a text",
            "image 3 of the list: image 3: `file_name` is 7, expected a name",
            "image 4 of the list: no `id`, expected a number or a text",
        ]
    );
    assert!(file.images[1].text.as_ref().is_some_and(Result::is_err));
    assert_eq!(file.images[1].neg_text, Some(Ok(vec!["b".to_owned()])));
    assert_eq!((file.categories.len(), file.repeated.categories.len()), (2, 1));
    let alike = r#"{"images": [], "annotations": [{"area": -1}, {"area": 2e10}, {"area": NaN}], "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cup"}]}"#;
    let notes = read(alike).expect("COCO's form").notes.join("\n");
    assert!(notes.contains("categories 1 and 2 are both called `cup`"), "{notes}");
    assert!(notes.contains("2 annotations have an `area`"), "{notes}");
}

#[test]
fn what_is_not_of_this_form_is_refused_with_its_place() {
    for (text, cause) in [
        ("{\"images\": []}", "val.json: no list `annotations`: COCO's form is"),
        ("{\"images\": {}, \"annotations\": []}", "val.json: no list `images`"),
        ("[]", "val.json:1:1: expected an object"),
        ("{\"images\": [],\n \"annotations\": [oops]}", "val.json:2:18: expected a value"),
        ("{\"images\": [", "val.json:1:13: it ends too early"),
        ("PAR1....", "val.json: Parquet"),
    ] {
        let error = read(text).expect_err(cause);
        assert!(error.contains(cause), "{error}");
    }
}
