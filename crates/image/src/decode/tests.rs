//! Every field of every record, there and back; what only hostile or foreign images have.
use super::*;
use crate::schema::Enum;
use crate::{Error, What, Writer, encode_image};

/// A value for every field, nested as deep as the schema is.
fn sample(ty: &Message, depth: usize) -> Json {
    let one = |field: &Field| match field.ty {
        Type::Message(at) => sample(&MESSAGES[at], depth + 1),
        Type::Enum(at) => {
            let Enum { values, .. } = &ENUMS[at];
            Json::Str(values[values.len() - 1].1.to_owned())
        }
        Type::Bool => Json::Bool(true),
        Type::Text => Json::Str("päth \"x\"\n".to_owned()),
        Type::Bytes if field.show == Show::Quoted => Json::Str("=00n=3D=FF".to_owned()),
        Type::Bytes => Json::Str(text::base64(&[0, 255, 7])),
        Type::Int32 | Type::Sint32 | Type::Sfixed32 => Json::Int(i32::MIN.into()),
        Type::Int64 | Type::Sint64 | Type::Sfixed64 => Json::Int(i64::MIN.into()),
        Type::Uint32 | Type::Fixed32 => Json::Int(u32::MAX.into()),
        Type::Uint64 | Type::Fixed64 => Json::Int(u64::MAX.into()),
        Type::Float | Type::Double => Json::Float(1.5),
    };
    let too_deep = |field: &Field| matches!(field.ty, Type::Message(_)) && depth > 3;
    let members = ty.fields.iter().filter(|f| !too_deep(f) || f.label == Label::Required).map(|field| {
        let value = match field.label {
            Label::Repeated => Json::Array(vec![one(field), one(field)]),
            _ => one(field),
        };
        (field.name.to_owned(), value)
    });
    Json::Object(members.collect())
}

fn image(kind: ImageKind, entries: Vec<Json>) -> Json {
    let magic = ("magic".to_owned(), Json::Str(kind.magic_name().to_owned()));
    Json::Object(vec![magic, ("entries".to_owned(), Json::Array(entries))])
}

fn set(json: &mut Json, name: &str, value: Json) {
    if let Json::Object(members) = json {
        members.retain(|(n, _)| n != name);
        members.push((name.to_owned(), value));
    }
}

/// An image of this kind with two entries and payloads that fit.
fn filled(kind: ImageKind) -> Json {
    let ty = schema::message(kind.record_name()).unwrap();
    let mut entry = sample(ty, 0);
    let b64 = |bytes: &[u8]| Json::Str(text::base64(bytes));
    let mut second = None;
    let lengths: &[(&str, i128)] = match kind.extra() {
        Extra::PipeData => &[("bytes", 5)],
        Extra::SkQueue => &[("length", 5)],
        Extra::BpfMap => &[("keys_bytes", 2), ("values_bytes", 3)],
        Extra::TcpStream => &[("inq_len", 5), ("outq_len", 0)],
        Extra::IpcSem => &[("nsems", 3)],
        Extra::IpcShm => &[("size", 5)],
        Extra::IpcMsg => &[("qnum", 1)],
        _ => &[],
    };
    for (name, len) in lengths {
        set(&mut entry, name, Json::Int(*len));
    }
    let extra = match kind.extra() {
        Extra::PipeData | Extra::SkQueue | Extra::BpfMap => Some(b64(b"hello")),
        Extra::TcpStream => Some(Json::Object(vec![("inq".to_owned(), b64(b"hello")), ("outq".to_owned(), b64(b""))])),
        Extra::IpcSem => Some(Json::Array(vec![Json::Int(1), Json::Int(65535), Json::Int(0)])),
        Extra::IpcShm => {
            set(&mut entry, "in_pagemaps", Json::Bool(false));
            Some(b64(b"hello"))
        }
        Extra::IpcMsg => {
            let head = vec![("mtype".to_owned(), Json::Int(9)), ("msize".to_owned(), Json::Int(5))];
            Some(Json::Array(vec![Json::Object(head), b64(b"hello")]))
        }
        Extra::Ghost => {
            let head = vec![("len".to_owned(), Json::Int(5)), ("off".to_owned(), Json::Int(4096))];
            let mut chunk = Json::Object(head);
            set(&mut chunk, "extra", b64(b"hello"));
            second = Some(chunk);
            None
        }
        Extra::Pagemap => {
            second = Some(sample(schema::message("pagemap_entry").unwrap(), 0));
            None
        }
        Extra::None => None,
    };
    if let Some(extra) = extra {
        set(&mut entry, "extra", extra);
    }
    let second = second.unwrap_or_else(|| entry.clone());
    image(kind, vec![entry, second])
}

/// Members in field order, as decoding gives them.
fn sorted(json: &Json) -> Json {
    match json {
        Json::Object(members) => {
            let mut members: Vec<_> = members.iter().map(|(n, v)| (n.clone(), sorted(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members)
        }
        Json::Array(items) => Json::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[test]
fn every_field_of_every_kind_comes_back() {
    for kind in ImageKind::all().filter(|k| !k.is_raw()) {
        let name = kind.file_name(1);
        let json = filled(kind);
        let bytes = encode_image(&name, &json).unwrap();
        let plain = decode_image(&name, &bytes, Style::default()).unwrap();
        assert_eq!(sorted(&plain), sorted(&json), "{kind:?}");
        assert_eq!(encode_image(&name, &plain).unwrap(), bytes, "{kind:?}");
        let pretty = decode_image(&name, &bytes, Style { pretty: true, without_payload: false }).unwrap();
        let parsed = Json::parse(&name, &pretty.to_pretty()).unwrap();
        assert_eq!(encode_image(&name, &parsed).unwrap(), bytes, "{kind:?}");
        assert_eq!(count_records(&name, &bytes).unwrap().0, kind);
    }
}

#[test]
fn an_image_cut_anywhere_is_an_error_or_shorter() {
    for kind in ImageKind::all().filter(|k| !k.is_raw()) {
        let name = kind.file_name(1);
        let bytes = encode_image(&name, &filled(kind)).unwrap();
        let whole = decode_image(&name, &bytes, Style::default()).unwrap();
        for len in (0..bytes.len()).step_by(1 + bytes.len() / 300) {
            // Between two records a cut cannot be seen; everywhere else it is.
            if let Ok(cut) = decode_image(&name, &bytes[..len], Style::default()) {
                assert_ne!(cut, whole, "{kind:?} {len}");
            }
        }
    }
}

#[test]
fn what_the_schema_does_not_know_survives() -> Result<()> {
    let mut w = Writer::new(Vec::new(), ImageKind::Fs)?;
    // cwd_id 1, an unknown varint and an unknown string, root_id with the wrong wire type, then root_id.
    w.entry_bytes(&[0x08, 1, 0xf8, 0x3f, 5, 0xfa, 0x3f, 2, b'h', b'i', 0x12, 1, 9, 0x10, 2])?;
    let bytes = w.into_inner();
    let json = decode_image("fs-1.img", &bytes, Style::default())?;
    let entry = &json.get("entries").and_then(Json::as_array).unwrap_or_default()[0];
    assert_eq!(entry.get("root_id"), Some(&Json::Int(2)));
    let unknown = entry.get(UNKNOWN).and_then(Json::as_str).and_then(text::unbase64).unwrap();
    assert_eq!(unknown, [0xf8, 0x3f, 5, 0xfa, 0x3f, 2, b'h', b'i', 0x12, 1, 9]);
    let again = decode_image("fs-1.img", &encode_image("fs-1.img", &json)?, Style::default())?;
    assert_eq!(again, json);
    Ok(())
}

#[test]
fn names_that_are_not_utf8_survive() -> Result<()> {
    let entry = crate::proto::RegFileEntry { name: b"/tmp/caf\xe9".to_vec(), ..Default::default() };
    let bytes = crate::encode_one(ImageKind::RegFiles, &entry)?;
    let json = decode_image("reg-files.img", &bytes, Style { pretty: true, without_payload: false })?;
    assert!(json.to_line().contains("caf\\ufffd"), "{}", json.to_line());
    assert_eq!(encode_image("reg-files.img", &json)?, bytes);
    Ok(())
}

#[test]
fn pretty_is_what_crit_shows() -> Result<()> {
    let vma = crate::proto::VmaEntry {
        start: 0x7000,
        end: 0x8000,
        prot: 3,
        flags: 0x4022,
        status: 0x201,
        fd: -1,
        madv: Some(1 << 14),
        ..Default::default()
    };
    let bytes = crate::encode_one(ImageKind::Vmas, &vma)?;
    let json = decode_image("vmas-1.img", &bytes, Style { pretty: true, without_payload: false })?;
    assert_eq!(
        json.to_line(),
        concat!(
            r#"{"magic": "VMAS", "entries": [{"start": "0x7000", "end": "0x8000", "pgoff": 0, "shmid": 0, "#,
            r#""prot": "PROT_READ | PROT_WRITE", "flags": "MAP_PRIVATE | MAP_ANON | 0x4000", "#,
            r#""status": "VMA_AREA_REGULAR | VMA_ANON_PRIVATE", "fd": -1, "madv": "0x4000"}]}"#
        )
    );
    Ok(())
}

#[test]
fn what_cannot_be_stored_is_refused_with_its_path() {
    let refuse = |text: &str| encode_image("t", &Json::parse("t", text).unwrap()).unwrap_err().to_string();
    for (text, said) in [
        (r#"{}"#, "\"magic\" is missing"),
        (r#"{"magic": "NO", "entries": []}"#, "no image has the magic \"NO\""),
        (r#"{"magic": "FS", "entries": [{"cwd_id": 1}]}"#, "entries[0].root_id: is missing"),
        (r#"{"magic": "FS", "entries": [{"cwd_id": -1, "root_id": 1}]}"#, "entries[0].cwd_id: -1 does not fit Uint32"),
        (
            r#"{"magic": "FS", "entries": [{"cwd_id": 1, "root_id": 1, "x": 1}]}"#,
            "entries[0].x: fs_entry has no such field",
        ),
        (r#"{"magic": "CORE", "entries": [{"mtype": "X86_65"}]}"#, "entries[0].mtype: \"X86_65\" is no value of march"),
        (
            r#"{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 4, "extra": "aGVsbG8="}]}"#,
            "entries[0].extra: 5 bytes, but \"bytes\" says 4",
        ),
    ] {
        let e = refuse(text);
        assert!(e.contains(said), "{text}: {e}");
    }
}

#[test]
fn hostile_records_are_errors() {
    let fs = |body: &[u8]| -> Result<Json, Error> {
        let mut w = Writer::new(Vec::new(), ImageKind::Cgroup)?;
        w.entry_bytes(body)?;
        decode_image("cgroup.img", &w.into_inner(), Style::default())
    };
    for (body, said) in [
        (&[0x00_u8, 1][..], "no field number"),
        (&[0x0b, 1], "wire type 3"),
        (&[0x80; 11], "longer than 64 bits"),
        (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "ends inside a field"),
        (&[0x80], "ends inside a number"),
    ] {
        let e = fs(body).unwrap_err().to_string();
        assert!(e.contains(said), "{e}");
    }
    // Directories within directories, far deeper than any stack should go.
    let mut deep = Vec::new();
    for _ in 0..100_000 {
        let len = deep.len();
        let mut outer = vec![0x12];
        let mut left = len as u64;
        while left >= 0x80 {
            outer.push(left as u8 | 0x80);
            left >>= 7;
        }
        outer.push(left as u8);
        if len > 60_000 {
            break;
        }
        outer.extend(deep);
        deep = outer;
    }
    let mut body = vec![0x12];
    let mut left = deep.len() as u64;
    while left >= 0x80 {
        body.push(left as u8 | 0x80);
        left >>= 7;
    }
    body.push(left as u8);
    body.extend(deep);
    let e = fs(&body).unwrap_err();
    assert!(matches!(e.what(), What::Impossible(why) if why.contains("nested too deeply")), "{e}");
}
