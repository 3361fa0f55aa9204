#include "bilevel/problem/dataset.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>

#include <unistd.h>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/npy.h"

namespace bilevel::dataset_test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

at::Tensor doubles(std::vector<double> list) { return at::tensor(list, at::TensorOptions(at::kDouble)); }
at::Tensor longs(std::vector<int64_t> list) { return at::tensor(list, at::TensorOptions(at::kLong)); }

class DatasetTest : public testing::Test {
 protected:
  DatasetTest() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fmt::format("{}bilevel_{}_{}/", testing::TempDir(), info->name(), getpid());
    std::filesystem::create_directories(folder_);
  }
  ~DatasetTest() override { std::filesystem::remove_all(folder_); }

  std::string text(const std::string& name, std::string_view content) {
    std::filesystem::create_directories(std::filesystem::path(folder_ + name).parent_path());
    write_file(folder_ + name, content);
    return folder_ + name;
  }
  std::string npy(const std::string& name, const at::Tensor& tensor) {
    write_npy(tensor, folder_ + name);
    return folder_ + name;
  }
  DataSpec csv(std::string_view content, const std::string& label = "y", const std::string& source = "") {
    DataSpec spec;
    spec.x = text("t.csv", content);
    spec.label = label;
    spec.source = source;
    spec.dtype = at::kDouble;
    return spec;
  }
  DataSpec arrays(const at::Tensor& x, const at::Tensor& y, const at::Tensor& source = {}) {
    DataSpec spec;
    spec.x = npy("x.npy", x);
    spec.y = npy("y.npy", y);
    if (source.defined()) spec.source = npy("s.npy", source);
    spec.dtype = at::kDouble;
    return spec;
  }
  std::string error_of_csv(std::string_view content, const std::string& source = "") {
    return error_of([&] { load_dataset(csv(content, "y", source)); });
  }
  std::string error_of_arrays(const at::Tensor& x, const at::Tensor& y, const at::Tensor& source = {}) {
    return error_of([&] { load_dataset(arrays(x, y, source)); });
  }

  std::string folder_;
};

// ---- tables

TEST_F(DatasetTest, StandardisesNumbersAndSpreadsCategories) {
  Encoding encoding;
  const Dataset data = load_dataset(csv("age,y,colour,same\n1,cat,red,7\n2,dog,blue,7\n6,cat,red,7\n"), nullptr, &encoding);
  const double std = std::sqrt((4.0 + 1.0 + 9.0) / 3.0);  // the mean is 3
  const at::Tensor expected = doubles({-2 / std, 0, 1, 0, -1 / std, 1, 0, 0, 3 / std, 0, 1, 0}).view({3, 4});
  EXPECT_TRUE(at::allclose(data.features, expected, 0, 1e-14)) << data.features;
  EXPECT_THAT(data.feature_names, ElementsAre("age", "colour=blue", "colour=red", "same"));
  EXPECT_TRUE(at::equal(data.labels, longs({0, 1, 0})));
  EXPECT_THAT(data.class_names, ElementsAre("cat", "dog"));
  EXPECT_FALSE(data.sources.defined());
  EXPECT_FALSE(data.images());
}

TEST_F(DatasetTest, NewRowsAreEncodedByTheTrainingDatasNumbers) {
  Encoding fitted;
  load_dataset(csv("age,y,colour\n1,cat,red\n2,dog,blue\n6,cat,red\n"), nullptr, &fitted);
  const Encoding encoding = Encoding::from_json(fitted.to_json(), "model");
  DataSpec fresh = csv("note,colour,age\nlong,red,3\nshort,teal,1\n,teal,1\n", "");
  const Dataset data = load_dataset(fresh, &encoding);
  const double std = std::sqrt(14.0 / 3.0);
  EXPECT_TRUE(at::allclose(data.features, doubles({0, 0, 1, -2 / std, 0, 0, -2 / std, 0, 0}).view({3, 3}), 0, 1e-14));
  EXPECT_FALSE(data.labels.defined());
  ASSERT_EQ(data.notes.size(), 1u);
  EXPECT_THAT(data.notes[0], AllOf(HasSubstr("\"colour\""), HasSubstr("2 of 3"), HasSubstr("teal")));
}

TEST_F(DatasetTest, TheEncodingSurvivesItsJson) {
  Encoding fitted;
  load_dataset(csv("größe,y,who,c\n0.1,3,b,u\n0.7,12,a,v\n0.3,3,b,u\n", "y", "who"), nullptr, &fitted);
  const Encoding again = Encoding::from_json(fitted.to_json(), "model");
  EXPECT_EQ(again.to_json(), fitted.to_json());
  EXPECT_EQ(again.columns[0].mean, fitted.columns[0].mean);  // to the last bit
  EXPECT_EQ(again.columns[0].std, fitted.columns[0].std);
  EXPECT_THAT(again.class_names, ElementsAre("3", "12"));
  EXPECT_THAT(again.source_names, ElementsAre("a", "b"));
  EXPECT_THROW(Encoding::from_json("{}", "m"), Error);
  EXPECT_THROW(Encoding::from_json("{\"table\": 3", "m"), Error);
  EXPECT_THROW(Encoding::from_json("[1, 2]", "m"), Error);
}

TEST_F(DatasetTest, NumericLabelsAreSortedByValueAndNamedByThemselves) {
  const Dataset data = load_dataset(csv("x,y\n1,10\n2,9.0\n3,10.0\n4,-1\n"));
  EXPECT_THAT(data.class_names, ElementsAre("-1", "9", "10"));
  EXPECT_TRUE(at::equal(data.labels, longs({2, 1, 2, 0})));
}

TEST_F(DatasetTest, SourcesAreNumberedByNameAndAreNoFeature) {
  const Dataset data = load_dataset(csv("x,y,vendor\n1,0,beta\n2,1,alpha\n3,1,beta\n", "y", "vendor"));
  EXPECT_THAT(data.source_names, ElementsAre("alpha", "beta"));
  EXPECT_TRUE(at::equal(data.sources, longs({1, 0, 1})));
  EXPECT_EQ(data.dimension(), 1);
}

TEST_F(DatasetTest, AFolderHasOneFilePerSource) {
  text("d/north.csv", "x,y\n1,0\n2,1\n");
  text("d/east.csv", "y,x\n1,3\n");
  DataSpec spec;
  spec.x = folder_ + "d";
  spec.label = "y";
  Encoding encoding;
  const Dataset data = load_dataset(spec, nullptr, &encoding);
  EXPECT_THAT(data.source_names, ElementsAre("east", "north"));
  EXPECT_TRUE(at::equal(data.sources, longs({0, 1, 1})));
  EXPECT_TRUE(at::equal(data.labels, longs({1, 0, 1})));
  EXPECT_EQ(data.dimension(), 1);
  EXPECT_EQ(load_table(spec).place(2), folder_ + "d/north.csv:3");
  EXPECT_EQ(load_dataset(csv("x,y\n1,0\n"), &encoding).size(), 1);
  text("d/west.csv", "y,x,z\n1,3,4\n");
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("\"z\""));
}

TEST_F(DatasetTest, RegressionKeepsTheNumbersOfALabelColumn) {
  DataSpec spec = csv("x,y\n1,0.5\n2,-3\n");
  spec.regression = true;
  const Dataset data = load_dataset(spec);
  EXPECT_TRUE(at::equal(data.labels, doubles({0.5, -3})));
  EXPECT_THAT(data.class_names, IsEmpty());
}

TEST_F(DatasetTest, LargeNumbersAreStandardisedWithoutOverflow) {
  const Dataset data = load_dataset(csv("x,y\n-8e307,0\n8e307,1\n"));
  EXPECT_TRUE(at::allclose(data.features, doubles({-1, 1}).view({2, 1}))) << data.features;
  const Dataset offset = load_dataset(csv("x,y\n1000000000.1,0\n1000000000.3,1\n"));
  EXPECT_TRUE(at::allclose(offset.features, doubles({-1, 1}).view({2, 1}))) << offset.features;
}

TEST_F(DatasetTest, NamesLineAndColumnOfWhatIsNoNumber) {
  EXPECT_THAT(error_of_csv("x,y\n1,0\n,1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("\"x\""), HasSubstr("missing")));
  EXPECT_THAT(error_of_csv("x,y\n1,0\nNA,1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("missing")));
  EXPECT_THAT(error_of_csv("x,y\n1,0\nNaN,1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("no finite number")));
  EXPECT_THAT(error_of_csv("x,y\n1,0\n-inf,1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("no finite number")));
  EXPECT_THAT(error_of_csv("x,y\n1,0\n1e999,1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("no finite number")));
  EXPECT_THAT(error_of_csv("x,y\nred,0\n\"\",1\n"), AllOf(HasSubstr("t.csv:3"), HasSubstr("empty")));
  EXPECT_THAT(error_of_csv("x,y\n1,\n2,1\n"), AllOf(HasSubstr("t.csv:2"), HasSubstr("\"y\" is empty")));
  EXPECT_THAT(error_of_csv("x,y,s\n1,0,\n2,1,b\n", "s"), AllOf(HasSubstr("t.csv:2"), HasSubstr("\"s\" is empty")));
}

TEST_F(DatasetTest, NewRowsMustFitTheTrainingTable) {
  Encoding encoding;
  load_dataset(csv("age,y\n1,cat\n2,dog\n"), nullptr, &encoding);
  const auto error = [&](std::string_view content) { return error_of([&] { load_dataset(csv(content), &encoding); }); };
  EXPECT_THAT(error("agee,y\n1,cat\n"), AllOf(HasSubstr("no column \"age\""), HasSubstr("agee")));
  EXPECT_THAT(error("age,y\n1,cow\n"), AllOf(HasSubstr("t.csv:2"), HasSubstr("\"cow\""), HasSubstr("cat, dog")));
  EXPECT_THAT(error("age,y\nold,cat\n"), AllOf(HasSubstr("t.csv:2"), HasSubstr("\"old\"")));
  EXPECT_THAT(error_of([&] { load_dataset(arrays(at::zeros({1, 1}), longs({0})), &encoding); }), HasSubstr("table"));
}

TEST_F(DatasetTest, RefusesAColumnOfIdentifiersAndATableWithoutFeatures) {
  std::string names = "id,x,y\n";
  for (int i = 0; i < 150; ++i) names += fmt::format("a{},1,0\n", i);
  EXPECT_THAT(error_of_csv(names), AllOf(HasSubstr("\"id\""), HasSubstr("150 different texts")));
  EXPECT_THAT(error_of_csv("y\n1\n"), HasSubstr("no column besides"));
  EXPECT_THAT(error_of_csv("x,y\n"), HasSubstr("no rows"));
  EXPECT_THAT(error_of([&] { load_dataset(csv("x,label\n1,2\n", "lable")); }), HasSubstr("\"label\""));
}

// ---- arrays

TEST_F(DatasetTest, ArraysAreTakenAsTheyAre) {
  const Dataset data =
      load_dataset(arrays(doubles({1, -2, 3.5, 4, 5, 6}).view({3, 2}), longs({2, 0, 2}), longs({1, 0, 1}).to(at::kInt)));
  EXPECT_TRUE(at::equal(data.features, doubles({1, -2, 3.5, 4, 5, 6}).view({3, 2})));
  EXPECT_TRUE(at::equal(data.labels, longs({2, 0, 2})));
  EXPECT_TRUE(at::equal(data.sources, longs({1, 0, 1})));
  EXPECT_THAT(data.class_names, ElementsAre("0", "1", "2"));
  EXPECT_THAT(data.source_names, ElementsAre("0", "1"));
}

TEST_F(DatasetTest, LabelsMayBeOfAnyIntegerTypeOrWholeFloats) {
  for (const auto type : {at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kFloat, at::kDouble}) {
    EXPECT_TRUE(at::equal(load_dataset(arrays(at::ones({3, 1}), longs({1, 0, 2}).to(type))).labels, longs({1, 0, 2})));
  }
  EXPECT_TRUE(at::equal(load_dataset(arrays(at::ones({2, 1}), longs({1, 0}).view({2, 1}))).labels, longs({1, 0})));
  EXPECT_THAT(error_of_arrays(at::ones({3, 1}), doubles({0, 1.5, 1})),
              AllOf(HasSubstr("y.npy: row 1 is 1.5"), HasSubstr("whole")));
}

TEST_F(DatasetTest, BytesOfImagesBecomeNumbersUpToOne) {
  const at::Tensor images = at::full({2, 3, 4}, 51, at::kByte);
  const Dataset data = load_dataset(arrays(images, longs({0, 1})));
  EXPECT_TRUE(at::allclose(data.features, at::full({2, 12}, 0.2, at::kDouble)));
  EXPECT_EQ(data.height, 3);
  EXPECT_EQ(data.width, 4);
  EXPECT_TRUE(
      at::equal(load_dataset(arrays(images.view({2, 12}), longs({0, 1}))).features, at::full({2, 12}, 51.0, at::kDouble)));
}

TEST_F(DatasetTest, ReadsIdxByContentWhateverItsName) {
  DataSpec spec;
  spec.x = text("pixels", std::string_view("\0\0\x08\x03\0\0\0\2\0\0\0\1\0\0\0\2\0\x33\xff\x66", 20));
  spec.y = text("labels", std::string_view("\0\0\x08\x01\0\0\0\2\1\0", 10));
  spec.dtype = at::kDouble;
  const Dataset data = load_dataset(spec);
  EXPECT_TRUE(at::allclose(data.features, doubles({0, 0.2, 1, 0.4}).view({2, 2})));
  EXPECT_TRUE(at::equal(data.labels, longs({1, 0})));
  EXPECT_EQ(data.width, 2);
}

TEST_F(DatasetTest, NamesRowAndColumnOfANonFiniteValue) {
  at::Tensor x = at::zeros({3, 4}, at::kDouble);
  x[2][1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(error_of_arrays(x, longs({0, 1, 0})), HasSubstr("x.npy: row 2, column 1 is NaN"));
  x[2][1] = std::numeric_limits<double>::infinity();
  EXPECT_THAT(error_of_arrays(x, longs({0, 1, 0})), HasSubstr("x.npy: row 2, column 1 is infinite"));
  DataSpec spec = arrays(x, longs({0, 1, 0}));
  spec.first = 1;  // rows are named as they are counted in the file
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("row 2, column 1"));
  EXPECT_THAT(error_of_arrays(at::zeros({2, 1}), doubles({0, NAN})), HasSubstr("y.npy: row 1 is NaN"));
}

TEST_F(DatasetTest, RefusesLabelsOutOfRangeAndLengthsThatDiffer) {
  const at::Tensor x = at::zeros({3, 2});
  EXPECT_THAT(error_of_arrays(x, longs({0, -1, 0})), AllOf(HasSubstr("row 1"), HasSubstr("-1 is out of range")));
  EXPECT_THAT(error_of_arrays(x, longs({0, 1 << 30, 0})), HasSubstr("out of range"));
  EXPECT_THAT(error_of_arrays(x, longs({0, 1})), AllOf(HasSubstr("y.npy has 2 labels"), HasSubstr("3 samples")));
  EXPECT_THAT(error_of_arrays(x, longs({0, 1, 0}), longs({0, 1})), HasSubstr("2 sources"));
  EXPECT_THAT(error_of_arrays(x, at::zeros({3, 2}, at::kLong)), HasSubstr("one number for each sample"));
  Encoding encoding;
  load_dataset(arrays(x, longs({0, 1, 2})), nullptr, &encoding);
  EXPECT_THAT(error_of([&] {
                load_dataset(arrays(x, longs({0, 3, 1})), &encoding);
              }),
              AllOf(HasSubstr("row 1"), HasSubstr("label 3 is out of range"), HasSubstr("0 to 2")));
  EXPECT_THAT(error_of([&] { load_dataset(arrays(at::zeros({3, 5}), longs({0, 1, 2})), &encoding); }), HasSubstr("5 features"));
}

TEST_F(DatasetTest, RefusesASourceWithoutSamples) {
  const at::Tensor x = at::zeros({3, 2}), y = longs({0, 1, 0});
  EXPECT_THAT(error_of_arrays(x, y, longs({0, 2, 2})), HasSubstr("source 1 has no samples"));
  EXPECT_THAT(error_of_arrays(x, y, longs({0, 1, int64_t{1} << 60})), HasSubstr("source 2 has no samples"));
  EXPECT_THAT(error_of_arrays(x, y, longs({0, -2, 1})), HasSubstr("-2 is out of range"));
}

TEST_F(DatasetTest, RefusesNoSamplesAtAll) {
  EXPECT_THAT(error_of_arrays(at::zeros({0, 2}), at::zeros({0}, at::kLong)), HasSubstr("no samples"));
  EXPECT_THAT(error_of_arrays(at::scalar_tensor(1.0), longs({0})), HasSubstr("single number"));
}

TEST_F(DatasetTest, RefusesFilesThatAreNotThereOrNoData) {
  DataSpec spec = arrays(at::zeros({2, 1}), longs({0, 1}));
  spec.x = folder_ + "none.npy";
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), AllOf(HasSubstr("none.npy"), HasSubstr("No such file")));
  spec.x = text("note.txt", "hello");
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("neither .npy, .csv nor IDX"));
  spec.x = text("all.npz", "PK\x03\x04");
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("several arrays"));
}

// ---- builtin data, and the configuration

TEST_F(DatasetTest, DigitsAreRowsOfTheOutsideCheckE3) {
  DataSpec spec;
  spec.builtin = "digits";
  spec.first = 1000;
  spec.dtype = at::kDouble;
  const Dataset data = load_dataset(spec);
  EXPECT_EQ(data.size(), 797);
  EXPECT_NEAR(data.features[0].sum().item<double>(), 268.0 / 16.0, 1e-12);
  EXPECT_EQ(data.height, 8);
  EXPECT_EQ(data.classes(), 10);
}

TEST_F(DatasetTest, FashionMnistIsTheRealOne) {
  if (find_fashion_mnist().empty()) GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  DataSpec spec;
  spec.builtin = "fashion-mnist";
  spec.split = "test";
  const Dataset data = load_dataset(spec);
  EXPECT_EQ(data.features.sizes(), at::IntArrayRef({10000, 784}));
  for (int64_t k = 0; k < 10; ++k) EXPECT_EQ(data.labels.eq(k).sum().item<int64_t>(), 1000);
  EXPECT_NEAR(data.features.mean(at::kDouble).item<double>(), 0.2868, 1e-4);  // as published for the test set
  EXPECT_EQ(data.class_names[9], "ankle boot");
}

TEST_F(DatasetTest, SelectKeepsRowsTogether) {
  const Dataset all = load_dataset(arrays(doubles({1, 2, 3}).view({3, 1}), longs({0, 1, 2}), longs({0, 1, 0})));
  const Dataset part = all.select(longs({2, 0}));
  EXPECT_TRUE(at::equal(part.features.flatten(), doubles({3, 1})));
  EXPECT_TRUE(at::equal(part.labels, longs({2, 0})));
  EXPECT_TRUE(at::equal(part.sources, longs({0, 0})));
  EXPECT_EQ(part.classes(), 3);
}

TEST_F(DatasetTest, TakesRowsFirstToFirstPlusCount) {
  DataSpec spec = csv("x,y\n1,0\n2,1\n4,1\n9,0\n");
  spec.first = 1;
  spec.count = 2;
  Encoding encoding;
  EXPECT_EQ(load_dataset(spec, nullptr, &encoding).size(), 2);
  EXPECT_NEAR(encoding.columns[0].mean, 3.0, 1e-15);
  spec.count = 4;
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("more than its 4 samples"));
  spec.first = 4;
  EXPECT_THAT(error_of([&] { load_dataset(spec); }), HasSubstr("first = 4"));
}

DataSpec spec_of(const std::string& toml) {
  Config config = Config::parse("[data]\ninner = " + toml + "\n", "/here/c.toml");
  DataSpec spec;
  Section section = config.root().section("data").section("inner");
  read(section, spec);
  Config again = Config::parse(config.text(), "/elsewhere/c.toml");  // complete, and with absolute paths: it says the same
  DataSpec same;
  Section second = again.root().section("data").section("inner");
  read(second, same);
  EXPECT_EQ(same.x, spec.x);
  EXPECT_EQ(same.source, spec.source);
  EXPECT_EQ(same.count, spec.count);
  return spec;
}

TEST_F(DatasetTest, IsReadFromTheConfiguration) {
  EXPECT_EQ(spec_of("{ x = \"a.npy\", y = \"b.npy\", source = \"s.npy\" }").source, "/here/s.npy");
  EXPECT_EQ(spec_of("{ x = \"a.csv\", label = \"y\", source = \"who\" }").source, "who");
  EXPECT_EQ(spec_of("{ builtin = \"digits\", first = 500, count = 500 }").first, 500);
  EXPECT_EQ(spec_of("{ builtin = \"fashion-mnist\", split = \"test\" }").split, "test");
  EXPECT_THAT(error_of([] { spec_of("{ x = \"a.npy\" }"); }), HasSubstr("inner.y: missing"));
  EXPECT_THAT(error_of([] { spec_of("{ x = \"a.csv\" }"); }), HasSubstr("inner.label: missing"));
  EXPECT_THAT(error_of([] { spec_of("{ y = \"a.npy\" }"); }), HasSubstr("inner.x: missing"));
  EXPECT_THAT(error_of([] { spec_of("{ x = \"a.csv\", label = \"y\", y = \"b.npy\" }"); }), HasSubstr("unknown key"));
  EXPECT_THAT(error_of([] { spec_of("{ builtin = \"digit\" }"); }), HasSubstr("\"digits\""));
  EXPECT_THAT(error_of([] { spec_of("{ builtin = \"digits\", count = -1 }"); }), HasSubstr("count = -1"));
  EXPECT_THAT(error_of([] { spec_of("{ builtin = \"digits\", cuont = 1 }"); }), HasSubstr("\"count\""));
}

}  // namespace
}  // namespace bilevel::dataset_test
