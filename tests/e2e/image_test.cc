// Image content as the container sees it, compared with the description that the image was made from.
#include <fmt/ranges.h>

#include <sstream>

#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

// What the runtime puts over an image in every container.
const std::vector<std::string> kNotTheImages = {"/proc",      "/sys",          "/dev",
                                                "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"};

// A folder's time is whatever its layer's unpacker left.
std::string WithoutFolderTime(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream in(line);
  for (std::string field; in >> field;) fields.push_back(field);
  if (fields.size() > 6 && fields[1] == "d") fields[6] = "0";
  return fmt::format("{}", fmt::join(fields, " "));
}

std::vector<std::string> WithoutRuntimePaths(const std::vector<std::string>& lines) {
  std::vector<std::string> kept;
  for (const std::string& line : lines) {
    const std::string path = line.substr(0, line.find(' '));
    if (std::find(kNotTheImages.begin(), kNotTheImages.end(), path) == kNotTheImages.end())
      kept.push_back(WithoutFolderTime(line));
  }
  return kept;
}

// Every path, attribute and byte of the image, in a pod of its own name.
void CheckTree(const std::string& pod, const Image& image) {
  ASSERT_OK(NeedImage(image.name));
  ContainerSpec spec;
  spec.name = "tree";
  spec.image = image.name;
  spec.command = {"/probe", "tree", "/"};
  spec.command.insert(spec.command.end(), kNotTheImages.begin(), kNotTheImages.end());
  spec.add_capabilities = {"SYS_ADMIN"};  // to list trusted attributes
  spec.readonly_root = true;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod, spec));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(120))));
  EXPECT_EQ(info.exit_code, 0);
  ASSERT_OK(TestNode().WaitLogComplete(info.log_path, In(seconds(20))));
  ASSERT_OK_AND_ASSIGN(const std::string out, Cri().LogText(id));
  const std::vector<std::string> seen = WithoutRuntimePaths(SplitLines(out));
  const std::vector<std::string> expected = WithoutRuntimePaths(ExpectedTree(image));
  std::vector<std::string> missing, extra;
  std::set_difference(expected.begin(), expected.end(), seen.begin(), seen.end(),
                      std::back_inserter(missing));
  std::set_difference(seen.begin(), seen.end(), expected.begin(), expected.end(), std::back_inserter(extra));
  EXPECT_THAT(missing, ::testing::IsEmpty());
  EXPECT_THAT(extra, ::testing::IsEmpty());
  EXPECT_GT(seen.size(), 100U);
  EXPECT_OK(Cri().RemoveContainer(id));
}

class ImageTest : public SharedPodTest {};

TEST_F(ImageTest, EveryPathOfAPlainImage) { CheckTree(pod(), Images().Busybox()); }

TEST_F(ImageTest, WhiteoutsLinksAttributesDevicesAndOddNames) { CheckTree(pod(), Images().Odd()); }

TEST_F(ImageTest, SetuidAndFileCapabilitiesWork) {
  ASSERT_OK(NeedImage(kOddImage));
  ContainerSpec spec = Sleeper("odd");
  spec.image = kOddImage;
  spec.user = 1000;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  ASSERT_OK_AND_ASSIGN(const std::string ids, ShellIn(id, "/odd/setuid ids"));
  EXPECT_THAT(ids, HasSubstr("uid=1000 euid=0"));
  // Listing its own namespaces needs no right; the effective set shows what the file gave.
  ASSERT_OK_AND_ASSIGN(
      const std::string caps,
      ShellIn(id,
              "/odd/capable eat 1 100 >/dev/null & p=$!; sleep 0.5; grep CapEff /proc/$p/status; kill $p"));
  EXPECT_THAT(caps, HasSubstr("0000000000002000"));
  EXPECT_OK(ShellIn(id, "echo x > /odd/null").status()) << "a device of the image works";
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(ImageTest, WritesStayInTheContainer) {
  const std::string change =
      "echo changed >/srv/hello; rm /etc/shadow; mkdir -p /home/new/er; mv /etc/group /etc/moved; "
      "chmod 700 /var; ln /srv/hello /srv/link; cat /srv/link; ls /etc | grep -c shadow; true";
  ASSERT_OK_AND_ASSIGN(const Finished first, RunToEnd(ShellContainer("writer", change)));
  EXPECT_EQ(first.out, "changed\n0\n") << first.err;
  ASSERT_OK_AND_ASSIGN(const Finished second,
                       RunToEnd(ShellContainer("reader", "cat /srv/hello; ls /etc | grep -c shadow")));
  EXPECT_EQ(second.out, "hello from an image\n1\n");
}

TEST_F(ImageTest, ARealServerServes) {
  ASSERT_OK(NeedImage(kNginxImage));
  CheckTree(pod(), *Images().Nginx());
  ContainerSpec spec;
  spec.name = "nginx";
  spec.image = kNginxImage;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  ASSERT_OK_AND_ASSIGN(const PodInfo info, Cri().PodStatus(pod()));
  HttpResponse page;
  ASSERT_OK(Eventually(In(seconds(30)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(page, HttpGet(info.ip, 80, "/", In(seconds(2))));
    return absl::OkStatus();
  }));
  EXPECT_EQ(page.body, "served by nginx in a virtual machine\n");
  ASSERT_OK_AND_ASSIGN(const HttpResponse blob, HttpGet(info.ip, 80, "/blob", In(seconds(30))));
  ASSERT_OK_AND_ASSIGN(const Image image, Images().Nginx());
  for (const Entry& entry : image.layers.back().entries()) {
    if (entry.path != "srv/www/blob") continue;
    EXPECT_TRUE(blob.body == entry.content) << blob.body.size();
  }
  EXPECT_OK(Eventually(In(seconds(5)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
    return log.find("GET /blob") != std::string::npos ? absl::OkStatus() : absl::NotFoundError(log);
  }));
  EXPECT_OK(Cri().StopContainer(id, 10));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo end, Cri().Status(id));
  EXPECT_EQ(end.exit_code, 0) << "nginx ends by itself on SIGTERM";
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(ImageTest, ALayerThatIsTooLargeForAnArenaIsADisk) {
  ASSERT_OK(NeedImage(kBigImage));
  ContainerSpec spec = Sleeper("big");
  spec.image = kBigImage;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  const Image image = Images().Big();
  ASSERT_OK_AND_ASSIGN(const ExecResult sum, Cri().ExecSync(id, {"sha256sum", "/big/noise"}, 120));
  EXPECT_EQ(sum.out.substr(0, 64), Sha256(image.layers.back().entries().back().content));
  if (IsLamina()) {
    ASSERT_OK_AND_ASSIGN(const std::string text, TestNode().Rest("/v1/sandboxes"));
    ASSERT_OK_AND_ASSIGN(const std::string metrics, TestNode().Rest("/metrics"));
    EXPECT_THAT(metrics, ::testing::ContainsRegex("lamina_layers_placed_total\\{kind=\"scsi\"\\} [1-9]"));
  }
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(ImageTest, BlobsOfTheErofsSnapshotterAreTakenAsTheyAre) {
  const char* snapshotter = getenv("LAMINA_E2E_SNAPSHOTTER");
  if (!IsLamina() || snapshotter == nullptr || std::string_view(snapshotter) != "erofs")
    GTEST_SKIP() << "containerd's snapshotter is not erofs";
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), Sleeper("blobs")));
  ASSERT_OK_AND_ASSIGN(const std::string metrics, TestNode().Rest("/metrics"));
  EXPECT_EQ(Metric(metrics, "lamina_layer_conversions_total"), 0);
  EXPECT_GT(Metric(metrics, "lamina_layers_placed_total{kind=\"vpmem\"}"), 0);
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

}  // namespace
}  // namespace lamina::e2e
