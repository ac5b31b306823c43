#include "node/json.h"

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>

namespace lamina::node {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::json;

json Convert(const Message& message);

json One(const Message& message, const Reflection& r, const FieldDescriptor* field, int index) {
  const bool repeated = index >= 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return repeated ? r.GetRepeatedString(message, field, index) : r.GetString(message, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return repeated ? r.GetRepeatedBool(message, field, index) : r.GetBool(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return repeated ? r.GetRepeatedDouble(message, field, index) : r.GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return repeated ? r.GetRepeatedUInt32(message, field, index) : r.GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return repeated ? r.GetRepeatedUInt64(message, field, index) : r.GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return repeated ? r.GetRepeatedInt64(message, field, index) : r.GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_INT32:
      return repeated ? r.GetRepeatedInt32(message, field, index) : r.GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return Convert(repeated ? r.GetRepeatedMessage(message, field, index) : r.GetMessage(message, field));
    default:
      return nullptr;
  }
}

json Convert(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  json object = json::object();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_map()) {
      json map = json::object();
      for (int k = 0; k < reflection.FieldSize(message, field); ++k) {
        const Message& entry = reflection.GetRepeatedMessage(message, field, k);
        const auto* descriptor = entry.GetDescriptor();
        const json key = One(entry, *entry.GetReflection(), descriptor->FindFieldByNumber(1), -1);
        map[key.get<std::string>()] =
            One(entry, *entry.GetReflection(), descriptor->FindFieldByNumber(2), -1);
      }
      object[field->name()] = map;
    } else if (field->is_repeated()) {
      json list = json::array();
      for (int k = 0; k < reflection.FieldSize(message, field); ++k)
        list.push_back(One(message, reflection, field, k));
      object[field->name()] = list;
    } else {
      object[field->name()] = One(message, reflection, field, -1);
    }
  }
  return object;
}

}  // namespace

std::string ToJson(const Message& message) {
  return Convert(message).dump(2, ' ', true, json::error_handler_t::replace) + "\n";
}

}  // namespace lamina::node
