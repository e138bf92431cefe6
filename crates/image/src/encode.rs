//! From JSON in crit's shape to bytes. Everything in the JSON must fit the schema: what cannot be stored is an error, where
//! crit leaves it out in silence.
use crate::decode::{UNKNOWN, are_fields, padding};
use crate::json::Json;
use crate::schema::{self, ENUMS, Field, Label, MESSAGES, Message, Show, Type};
use crate::{Error, Extra, ImageKind, Result, Writer, text};

/// The image that this JSON stands for. `name` is for errors, and tells apart kinds that share a magic.
///
/// # Errors
/// With the path to the member that does not fit.
pub fn encode_image(name: &str, json: &Json) -> Result<Vec<u8>> {
    let bad = |why: String| Error::text(name, why);
    let magic = json.get("magic").and_then(Json::as_str);
    let magic = magic.ok_or_else(|| bad("\"magic\" is missing: not an image".to_owned()))?;
    let kind = ImageKind::of_magic_name(magic).ok_or_else(|| bad(format!("no image has the magic {magic:?}")))?;
    let entries = json.get("entries").and_then(Json::as_array);
    let entries = entries.ok_or_else(|| bad("\"entries\" is missing: not an image".to_owned()))?;
    let record = |name: &str| schema::message(name).ok_or_else(|| bad(format!("{magic} has no records")));

    let mut w = Writer::new(Vec::new(), kind)?;
    let mut ty = record(kind.record_name())?;
    let mut sparse_ghost = false;
    for (at, entry) in entries.iter().enumerate() {
        let wrong = |why: String| bad(format!("entries[{at}]{why}"));
        w.entry_bytes(&message(entry, ty, 0).map_err(wrong)?)?;
        let extra = entry.get("extra");
        match kind.extra() {
            Extra::None => {
                if extra.is_some() {
                    return Err(wrong(": \"extra\" has no place in this kind of image".to_owned()));
                }
            }
            Extra::Pagemap => ty = record("pagemap_entry")?,
            Extra::Ghost => {
                if at == 0 {
                    sparse_ghost = entry.get("chunks").and_then(truth) == Some(true);
                }
                if at == 0 && sparse_ghost {
                    ty = record("ghost_chunk_entry")?;
                } else {
                    let content = bytes(extra).map_err(wrong)?;
                    let len = entry.get("len").and_then(|len| integer_text(len).ok());
                    if sparse_ghost && len != Some(content.len() as i128) {
                        return Err(wrong(".extra: its length is not \"len\"".to_owned()));
                    }
                    w.extra(&content)?;
                    if !sparse_ghost && entries.len() > 1 {
                        return Err(wrong(": more than one entry, but \"chunks\" is not set".to_owned()));
                    }
                }
            }
            payload => write_payload(&mut w, payload, entry, extra, record("ipc_msg")?).map_err(|e| match e {
                Failed::Json(why) => wrong(why),
                Failed::Image(e) => e,
            })?,
        }
    }
    Ok(w.into_inner())
}

enum Failed {
    Json(String),
    Image(Error),
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Json(why)
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::Image(e)
    }
}

/// A truth value, also as a number.
fn truth(json: &Json) -> Option<bool> {
    match json {
        Json::Bool(b) => Some(*b),
        Json::Int(n) => Some(*n != 0),
        _ => None,
    }
}

fn bytes(extra: Option<&Json>) -> Result<Vec<u8>, String> {
    let text = extra.and_then(Json::as_str).ok_or(".extra: base64 text expected")?;
    text::unbase64(text).ok_or_else(|| ".extra: not base64".to_owned())
}

fn write_payload(
    w: &mut Writer<Vec<u8>>,
    payload: Extra,
    entry: &Json,
    extra: Option<&Json>,
    ipc_msg: &Message,
) -> Result<(), Failed> {
    let number = |name: &str| entry.get(name).map_or(Ok(0), |v| integer_text(v).map_err(|e| format!(".{name}: {e}")));
    let sized = |content: Vec<u8>, wanted: i128, name: &str| {
        if content.len() as i128 == wanted {
            Ok(content)
        } else {
            Err(format!(".extra: {} bytes, but {name} says {wanted}", content.len()))
        }
    };
    let zeros = |len: usize, to: u64| vec![0; padding(len as u64, to) as usize];
    match payload {
        Extra::PipeData => w.extra(&sized(bytes(extra)?, number("bytes")?, "\"bytes\"")?)?,
        Extra::SkQueue => w.extra(&sized(bytes(extra)?, number("length")?, "\"length\"")?)?,
        Extra::BpfMap => {
            let wanted = number("keys_bytes")? + number("values_bytes")?;
            w.extra(&sized(bytes(extra)?, wanted, "\"keys_bytes\" and \"values_bytes\"")?)?;
        }
        Extra::TcpStream => {
            for (part, len) in [("inq", "inq_len"), ("outq", "outq_len")] {
                let content = bytes(extra.and_then(|e| e.get(part)))?;
                w.extra(&sized(content, number(len)?, len)?)?;
            }
        }
        Extra::IpcSem => {
            let list = extra.and_then(Json::as_array).ok_or_else(|| ".extra: a list of numbers expected".to_owned())?;
            let mut content = Vec::new();
            for value in list {
                let value = value.as_u64().and_then(|v| u16::try_from(v).ok());
                let value = value.ok_or_else(|| ".extra: numbers from 0 to 65535 expected".to_owned())?;
                content.extend_from_slice(&value.to_le_bytes());
            }
            let content = sized(content, number("nsems")? * 2, "twice \"nsems\"")?;
            w.extra(&content)?;
            w.extra(&zeros(content.len(), 8))?;
        }
        Extra::IpcShm => {
            let in_pagemaps = entry.get("in_pagemaps").and_then(truth) == Some(true);
            let content = if extra.is_some() { bytes(extra)? } else { Vec::new() };
            let wanted = if in_pagemaps { 0 } else { number("size")? };
            let content = sized(content, wanted, "\"size\"")?;
            w.extra(&content)?;
            w.extra(&zeros(content.len(), 4))?;
        }
        Extra::IpcMsg => {
            let list = extra.and_then(Json::as_array).ok_or_else(|| ".extra: a list expected".to_owned())?;
            if list.len() as i128 != number("qnum")? * 2 {
                return Err(".extra: two members for each of \"qnum\" messages expected".to_owned().into());
            }
            for pair in list.chunks(2) {
                let [head, content] = pair else { continue };
                w.entry_bytes(&message(head, ipc_msg, 0).map_err(|e| format!(".extra{e}"))?)?;
                let size = head.get("msize").map_or(Ok(0), integer_text).map_err(|e| format!(".extra.msize: {e}"))?;
                let content = sized(bytes(Some(content))?, size, "\"msize\"")?;
                w.extra(&content)?;
                w.extra(&zeros(content.len(), 8))?;
            }
        }
        Extra::None | Extra::Ghost | Extra::Pagemap => {}
    }
    Ok(())
}

/// The bytes of a message. Errors begin with the path to the member.
fn message(json: &Json, ty: &Message, depth: usize) -> Result<Vec<u8>, String> {
    let members = json.as_object().ok_or_else(|| format!(": an object ({}) expected", ty.name))?;
    for (name, _) in members {
        let known = ty.fields.iter().any(|f| f.name == name) || name == UNKNOWN || depth == 0 && name == "extra";
        if !known {
            return Err(format!(".{name}: {} has no such field", ty.name));
        }
    }
    let mut out = Vec::new();
    for field in ty.fields {
        let wrong = |why: String| {
            let join = if why.starts_with(['.', '[', ':']) { "" } else { ": " };
            format!(".{}{join}{why}", field.name)
        };
        match (json.get(field.name), field.label) {
            (None | Some(Json::Null), Label::Required) => return Err(wrong("is missing".to_owned())),
            (None | Some(Json::Null), _) => {}
            (Some(list), Label::Repeated) => repeated(list, field, depth, &mut out).map_err(wrong)?,
            (Some(value), _) => {
                let value = encode_value(value, field, depth).map_err(wrong)?;
                put(&mut out, field.number, &value);
            }
        }
    }
    if let Some(unknown) = json.get(UNKNOWN) {
        let raw = unknown.as_str().and_then(text::unbase64);
        let raw = raw.ok_or_else(|| format!(".{UNKNOWN}: base64 text expected"))?;
        are_fields(&raw).map_err(|why| format!(".{UNKNOWN}: {why}"))?;
        out.extend(raw);
    }
    Ok(out)
}

fn repeated(list: &Json, field: &Field, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let list = list.as_array().ok_or("a list expected")?;
    let address;
    let list = match list {
        [Json::Str(one)] if field.show == Show::Ip && one.contains(['.', ':']) => {
            let words = text::unip(one).ok_or_else(|| format!("{one:?} is no IP address"))?;
            address = words.into_iter().map(|w| Json::Int(w.into())).collect::<Vec<_>>();
            &address[..]
        }
        _ => list,
    };
    let mut packed = Vec::new();
    for (at, item) in list.iter().enumerate() {
        let value = encode_value(item, field, depth).map_err(|why| {
            let join = if why.starts_with(['.', '[', ':']) { "" } else { ": " };
            format!("[{at}]{join}{why}")
        })?;
        if field.packed { value.append_to(&mut packed) } else { put(out, field.number, &value) }
    }
    if !packed.is_empty() {
        put(out, field.number, &Wire::Bytes(packed));
    }
    Ok(())
}

enum Wire {
    Varint(u64),
    Fixed64(u64),
    Bytes(Vec<u8>),
    Fixed32(u32),
}

impl Wire {
    fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Varint(v) => varint(out, *v),
            Self::Fixed64(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::Fixed32(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::Bytes(b) => {
                varint(out, b.len() as u64);
                out.extend_from_slice(b);
            }
        }
    }
}

fn put(out: &mut Vec<u8>, number: u32, value: &Wire) {
    let wire_type = match value {
        Wire::Varint(_) => 0,
        Wire::Fixed64(_) => 1,
        Wire::Bytes(_) => 2,
        Wire::Fixed32(_) => 5,
    };
    varint(out, u64::from(number) << 3 | wire_type);
    value.append_to(out);
}

pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn encode_value(json: &Json, field: &Field, depth: usize) -> Result<Wire, String> {
    match field.ty {
        Type::Message(at) => {
            let ty = MESSAGES.get(at).ok_or("a type that is not in the schema")?;
            return message(json, ty, depth + 1).map(Wire::Bytes);
        }
        Type::Text => {
            let bytes = match (json, json.get("base64").and_then(Json::as_str)) {
                (Json::Str(s), _) => Some(s.as_bytes().to_vec()),
                (_, Some(base64)) => text::unbase64(base64),
                _ => None,
            };
            return bytes.map(Wire::Bytes).ok_or_else(|| "text expected".to_owned());
        }
        Type::Bytes => {
            let text = json.as_str().ok_or("text expected")?;
            if field.show == Show::Quoted {
                return Ok(Wire::Bytes(text::unquoted(text)));
            }
            return text::unbase64(text).map(Wire::Bytes).ok_or_else(|| "not base64".to_owned());
        }
        Type::Bool => {
            let value = truth(json).ok_or("true or false expected")?;
            return Ok(Wire::Varint(value.into()));
        }
        Type::Enum(at) => {
            let names = ENUMS.get(at).ok_or("a type that is not in the schema")?;
            let value = match json {
                Json::Str(s) => names.values.iter().find(|(_, name)| name == s).map(|(n, _)| *n),
                Json::Int(n) => i32::try_from(*n).ok(),
                _ => None,
            };
            let value = value.ok_or_else(|| format!("{} is no value of {}", json.to_line(), names.name))?;
            return Ok(Wire::Varint(i64::from(value) as u64));
        }
        Type::Double => return float(json).map(|x| Wire::Fixed64(x.to_bits())),
        Type::Float => return float(json).map(|x| Wire::Fixed32((x as f32).to_bits())),
        _ => {}
    }
    let n = integer(json, field)?;
    let too_big = |_| format!("{n} does not fit {:?}", field.ty);
    Ok(match field.ty {
        Type::Int32 => Wire::Varint(i64::from(i32::try_from(n).map_err(too_big)?) as u64),
        Type::Int64 => Wire::Varint(i64::try_from(n).map_err(too_big)? as u64),
        Type::Uint32 => Wire::Varint(u32::try_from(n).map_err(too_big)?.into()),
        Type::Sint32 => {
            let n = i32::try_from(n).map_err(too_big)?;
            Wire::Varint(((n << 1 ^ n >> 31) as u32).into())
        }
        Type::Sint64 => {
            let n = i64::try_from(n).map_err(too_big)?;
            Wire::Varint((n << 1 ^ n >> 63) as u64)
        }
        Type::Fixed32 => Wire::Fixed32(u32::try_from(n).map_err(too_big)?),
        Type::Sfixed32 => Wire::Fixed32(i32::try_from(n).map_err(too_big)? as u32),
        Type::Fixed64 => Wire::Fixed64(u64::try_from(n).map_err(too_big)?),
        Type::Sfixed64 => Wire::Fixed64(i64::try_from(n).map_err(too_big)? as u64),
        _ => Wire::Varint(u64::try_from(n).map_err(too_big)?),
    })
}

fn float(json: &Json) -> Result<f64, String> {
    match json {
        Json::Float(x) => Ok(*x),
        Json::Int(n) => Ok(*n as f64),
        _ => Err("a number expected".to_owned()),
    }
}

fn integer(json: &Json, field: &Field) -> Result<i128, String> {
    let Json::Str(s) = json else { return integer_text(json) };
    let found = match field.show {
        Show::Dev if s.contains(':') => text::undev(s, false).map(i128::from),
        Show::OldDev if s.contains(':') => text::undev(s, true).map(i128::from),
        Show::Flags(table) => {
            let mut sum = Some(0);
            for name in s.split('|').map(str::trim).filter(|name| !name.is_empty()) {
                let bit = schema::flags(table).iter().find(|(n, _)| *n == name);
                let bit = bit.map(|(_, bit)| i128::from(*bit)).or_else(|| parse_int(name));
                sum = sum.and_then(|sum: i128| Some(sum | bit?));
            }
            sum
        }
        Show::Values(table) => {
            let value = schema::values(table).iter().find(|(_, name)| name == s);
            value.map(|(v, _)| i128::from(*v)).or_else(|| parse_int(s))
        }
        _ => parse_int(s),
    };
    found.ok_or_else(|| format!("{s:?} is not understood as a number"))
}

fn integer_text(json: &Json) -> Result<i128, String> {
    match json {
        Json::Int(n) => Ok(*n),
        Json::Bool(b) => Ok((*b).into()),
        Json::Str(s) => parse_int(s).ok_or_else(|| format!("{s:?} is not a number")),
        other => Err(format!("a number expected, not {}", other.to_line())),
    }
}

/// As Python's `int(text, 0)` for what occurs, and `0x-1` as crit itself writes negative numbers.
fn parse_int(s: &str) -> Option<i128> {
    let s = s.trim();
    let (negative, digits) = match s.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, s),
    };
    let value = match (digits.strip_prefix("0x"), digits.strip_prefix("0o"), digits.strip_prefix("0b")) {
        (Some(hex), ..) => i128::from_str_radix(hex, 16),
        (_, Some(oct), _) => i128::from_str_radix(oct, 8),
        (.., Some(bin)) => i128::from_str_radix(bin, 2),
        _ => digits.parse(),
    };
    value.ok().map(|v| if negative { -v } else { v })
}
