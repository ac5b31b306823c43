#include "cri/command_line.h"

#include <map>

#include "base/status.h"
#include "persist/sandbox_state.h"

namespace lamina::cri {

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CommandLine line;
  const std::map<std::string, std::string*> texts = {{"namespace", &line.ns},
                                                     {"address", &line.address},
                                                     {"publish-binary", &line.publish_binary},
                                                     {"id", &line.id},
                                                     {"bundle", &line.bundle}};
  const std::map<std::string, bool*> flags = {
      {"debug", &line.debug}, {"info", &line.info}, {"v", &line.version}, {"version", &line.version}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string word = arguments[i];
    if (word.empty() || word[0] != '-') {
      line.action = word;
      continue;
    }
    word.erase(0, word.rfind("--", 0) == 0 ? 2 : 1);
    std::string value;
    const size_t equals = word.find('=');
    const bool has_value = equals != std::string::npos;
    if (has_value) {
      value = word.substr(equals + 1);
      word.erase(equals);
    }
    if (const auto flag = flags.find(word); flag != flags.end()) {
      *flag->second = value != "false";
      continue;
    }
    if (!has_value) {
      if (i + 1 == arguments.size()) return InvalidArgument("flag -{} has no value", word);
      value = arguments[++i];
    }
    if (const auto text = texts.find(word); text != texts.end()) *text->second = value;
  }
  if (!line.id.empty() && !persist::IsSafeId(line.id))
    return InvalidArgument("-id \"{}\" is not safe as a file name", line.id);
  return line;
}

std::string ShimSocket(const std::string& run_dir, const std::string& ns, const std::string& sandbox_id) {
  return run_dir + "/shim/" + ns.substr(0, 16) + "-" + sandbox_id.substr(0, 24) + ".sock";
}

}  // namespace lamina::cri
